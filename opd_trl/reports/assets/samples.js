// Sample completions over time: a step, and for each run its samples of that step, token by token.

const STEPS_OF_COLOUR = 9
const samplesView = { place: 0, by: 'd', full: { ...data.fullColour } }
const sampleSteps = [...new Set(data.runs.flatMap(run => run.samples.map(sample => sample.step)))].sort((a, b) => a - b)
const BY = {
  d: { title: 'divergence from the teacher (nats)', low: 'agrees', high: 'diverges' },
  r: { title: 'teacher\u2019s minus student\u2019s log-probability (nats)', low: 'teacher finds it less likely', high: 'more likely' },
}

// What a terminal or a browser would hide or obey: controls, zero widths, changes of the writing direction.
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g
// A token that is a part of a character has no text of its own.
const visible = text => text === '' ? '◌' : text
  .replace(HIDDEN, c => (c === '\t' ? '⇥\t' : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`))
  .replace(/\n/g, '⏎\n')

// The class of a token's colour; square roots, since most tokens diverge little.
function tone(value) {
  if (value === null) return 'none'
  const part = Math.min(1, Math.sqrt(Math.abs(value) / samplesView.full[samplesView.by]))
  const level = Math.min(STEPS_OF_COLOUR - 1, Math.floor(part * STEPS_OF_COLOUR))
  if (samplesView.by === 'd') return value > 0 ? `t${level}` : 't0'
  return value < 0 ? `t${level}` : `u${level}`
}

function drawLegend() {
  const scale = document.getElementById('scale')
  const full = samplesView.full[samplesView.by]
  const edges = Array.from({ length: STEPS_OF_COLOUR }, (_, i) => (i / STEPS_OF_COLOUR) ** 2 * full)
  const box = (level, kind, text) => make('span', { class: `tone ${kind}${level}` }, text)
  const up = edges.map((edge, i) => box(i, 't', i % 2 ? '' : fmt(Number(edge.toPrecision(2)))))
  const words = BY[samplesView.by]
  const more = edges.map((edge, i) => box(i, 'u', i % 2 ? '' : fmt(Number(edge.toPrecision(2)))))
  const parts = samplesView.by === 'd'
    ? [make('span', {}, words.low), ...up, make('span', {}, `${words.high} (${fmt(full)} and more)`)]
    : [make('span', {}, words.low), ...up.reverse().slice(0, -1), ...more, make('span', {}, words.high)]
  scale.replaceChildren(...parts, make('span', { class: 'tone none' }, 'not in the loss'))
  document.getElementById('full-value').textContent = `${fmt(full)} nats`
  document.getElementById('full').value = Math.log10(full)
}

function tokenSpans(sample) {
  const nodes = []
  sample.tokens.forEach((token, i) => {
    if (sample.cut && i === sample.cut[0]) nodes.push(make('span', { class: 'gap' }, ` … ${sample.cut[1].toLocaleString('en')} tokens left out of this page … `))
    if (sample.turn && sample.turn[i] !== sample.turn[i - 1]) nodes.push(make('span', { class: 'turn' }, sample.turn[i] ? `turn ${sample.turn[i]}` : 'tool'))
    const node = make('span', { class: tone(sample[samplesView.by][i]) }, visible(token))
    node.dataset.i = i
    nodes.push(node)
  })
  return nodes
}

// Divergence along the completion: a bar for each token, or for each group of tokens of a long one, with its highest.
function strip(sample) {
  const columns = Math.min(sample.d.length, 240)
  const svg = shape('svg', { class: 'strip', style: `max-width: ${columns * 9}px`, viewBox: `0 0 ${columns} 24`, preserveAspectRatio: 'none', 'aria-hidden': true })
  for (let c = 0; c < columns; c++) {
    const from = Math.floor(c * sample.d.length / columns)
    const until = Math.floor((c + 1) * sample.d.length / columns)
    const top = Math.max(0, ...sample.d.slice(from, until).map(v => v ?? 0))
    const height = Math.min(1, Math.sqrt(top / samplesView.full.d)) * 24
    svg.append(shape('rect', { x: c + 0.08, width: 0.84, y: 24 - height, height }))
  }
  return svg
}

function folded(title, text, open) {
  const node = make('details', {}, make('summary', {}, title), make('pre', {}, text))
  node.open = open
  node.addEventListener('toggle', () => { opened[title.split(' (')[0]] = node.open })
  return node
}

const opened = { 'Prompt': true, 'What the teacher read': false }

function card(sample) {
  const position = i => (sample.cut && i >= sample.cut[0] ? i + sample.cut[1] : i) + 1
  const text = make('div', { class: 'completion' }, ...tokenSpans(sample))
  text.addEventListener('pointermove', event => {
    const i = event.target.dataset.i
    if (i === undefined) { tooltip.hidden = true; return }
    const value = (name, v) => make('div', { class: 'row' }, `${name} `, make('b', {}, v === null ? 'not in the loss' : fmt(v)))
    tooltip.replaceChildren(
      make('div', { class: 'step' }, `token ${position(Number(i))} of ${sample.count}: `, make('code', {}, visible(sample.tokens[i]))),
      value('divergence, nats', sample.d[i]), value('teacher − student, nats', sample.r[i]))
    tooltip.hidden = false
    placeTooltip(event)
  })
  text.addEventListener('pointerleave', () => { tooltip.hidden = true })
  const mean = sample.mean === null ? 'no token in the loss' : `mean divergence ${fmt(sample.mean)} nats over ${sample.counted.toLocaleString('en')} tokens`
  const who = sample.teacher ? ` · teacher ${sample.teacher}` : ''
  return make('article', { class: 'sample' },
    folded('Prompt', visibleBlock(sample.prompt), opened.Prompt),
    ...(sample.teacher_prompt === null ? [make('p', { class: 'note' }, 'The teacher read the same prompt.')]
      : [folded('What the teacher read', visibleBlock(sample.teacher_prompt), opened['What the teacher read'])]),
    make('p', { class: 'note' }, `Student · ${mean}${who}`), text, strip(sample))
}

const visibleBlock = text => text.replace(HIDDEN, c => (c === '\t' ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`))

// Where there are several runs a column for each; of one run its first step, and beside it the step that is looked at.
function sampleColumns(step) {
  if (several) return data.runs.map((run, r) => sampleColumn(run, step, `ink c${r % 8}`, `${run.name}, `))
  const steps = samplesView.place ? [sampleSteps[0], step] : [step]
  return steps.map(which => sampleColumn(data.runs[0], which, '', ''))
}

function sampleColumn(run, step, ink, name) {
  const steps = [...new Set(run.samples.map(sample => sample.step))].sort((a, b) => a - b)
  if (!steps.length) return make('div', {}, make('h3', {}, run.name), make('p', { class: 'note' }, 'No samples were logged.'))
  const own = steps[nearest(steps, step)]
  const cards = run.samples.filter(sample => sample.step === own).map(card)
  return make('div', {}, make('h3', { class: ink }, `${name}step ${own.toLocaleString('en')}`), make('div', { class: 'cards' }, ...cards))
}

function drawSamples() {
  const step = sampleSteps[samplesView.place]
  const columns = sampleColumns(step)
  const cards = document.getElementById('sample-cards')
  cards.classList.toggle('columns', columns.length > 1)
  cards.replaceChildren(...columns)
  document.getElementById('sample-step').textContent = `step ${step.toLocaleString('en')} (${samplesView.place + 1} of ${sampleSteps.length})`
  const slider = document.getElementById('sample-slider')
  slider.value = samplesView.place
  slider.setAttribute('aria-valuetext', `step ${step}`)
  drawLegend()
}

function turnTo(place) {
  samplesView.place = Math.max(0, Math.min(sampleSteps.length - 1, place))
  drawSamples()
}

function startSamples() {
  if (!sampleSteps.length) return
  const slider = document.getElementById('sample-slider')
  slider.max = sampleSteps.length - 1
  slider.addEventListener('input', () => turnTo(Number(slider.value)))
  document.getElementById('sample-before').addEventListener('click', () => turnTo(samplesView.place - 1))
  document.getElementById('sample-after').addEventListener('click', () => turnTo(samplesView.place + 1))
  document.getElementById('colour-by').addEventListener('change', event => {
    samplesView.by = event.target.value
    drawSamples()
  })
  document.getElementById('full').addEventListener('input', event => {
    samplesView.full[samplesView.by] = Number((10 ** event.target.value).toPrecision(2))
    drawSamples()
  })
  turnTo(sampleSteps.length - 1)
}
