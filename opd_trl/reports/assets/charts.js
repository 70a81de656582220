// Line charts over one step axis: hover for values, drag to zoom all of them, warnings and resumes as marks.

const data = JSON.parse(document.getElementById('data').textContent)
const several = data.runs.length > 1
const view = { smoothing: 0, log: false, domain: null, hidden: new Set() }
const charts = []
const tooltip = document.getElementById('tooltip')
const HEIGHT = 210
const MARGIN = { left: 54, right: 14, top: 14, bottom: 24 }
const DASHES = ['', '7 4', '2 3', '9 3 2 3']

function wholeDomain() {
  const ends = data.runs.flatMap(run => run.steps.filter(s => s.length).flatMap(s => [s[0], s[s.length - 1]]))
  if (!ends.length) return [0, 1]
  const low = Math.min(...ends)
  const high = Math.max(...ends)
  return high > low ? [low, high] : [low - 1, high + 1]
}

const fullDomain = wholeDomain()
const domain = () => view.domain || fullDomain

function placeTooltip(event) {
  const box = tooltip.getBoundingClientRect()
  const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 12 : event.clientX + 16
  tooltip.style.left = `${Math.max(4, left)}px`
  tooltip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`
}

class Chart {
  constructor(spec) {
    this.spec = spec
    this.figure = document.getElementById(`chart-${spec.key}`)
    this.plot = this.figure.querySelector('.plot')
    this.legend = this.figure.querySelector('.legend')
    this.log = false
    this.figure.querySelector('.log').addEventListener('click', event => {
      this.log = !this.log
      event.target.setAttribute('aria-pressed', this.log)
      this.draw()
    })
    this.lines = data.runs.flatMap((run, r) => spec.lines.map((line, l) => this.line(run, r, line, l)).filter(Boolean))
    this.buildLegend()
    this.plot.addEventListener('pointermove', event => this.move(event))
    this.plot.addEventListener('pointerleave', () => this.leave())
    this.plot.addEventListener('pointerdown', event => this.grab(event))
    this.plot.addEventListener('dblclick', () => zoom(null))
  }

  line(run, r, line, l) {
    const found = run.series[line.metric]
    if (!found) return null
    const colour = several ? r : l
    return { ...line, ...found, run: r, name: run.name, steps: run.steps[found.axis], colour, dash: several ? DASHES[l % 4] : '' }
  }

  shown() { return this.lines.filter(line => !view.hidden.has(line.run)) }

  // One entry for each label; its values follow the pointer, and are the last ones otherwise.
  buildLegend() {
    this.values = []
    for (const [l, spec] of this.spec.lines.entries()) {
      const own = this.lines.filter(line => line.metric === spec.metric)
      if (!own.length) continue
      const swatch = shape('svg', { width: 22, height: 8, class: several ? 'dashes' : `c${l % 8}` })
      swatch.append(shape('line', { x1: 0, x2: 22, y1: 4, y2: 4, 'stroke-dasharray': several ? DASHES[l % 4] : '' }))
      const entry = make('span', { class: 'entry', title: spec.metric }, swatch, spec.label)
      for (const line of own) {
        const value = make('b', { class: several ? `ink c${line.run % 8}` : 'ink' }, fmt(line.last))
        this.values.push({ line, value })
        entry.append(value)
      }
      this.legend.append(entry)
    }
  }

  // Pixels of the axes for what is to be seen of the lines.
  scales() {
    const [x0, x1] = domain()
    const log = (this.log || view.log) && this.shown().some(line => line.v.some(v => v > 0))
    let low = Infinity
    let high = -Infinity
    for (const line of this.shown()) {
      line.drawn = smoothed(line.v, view.smoothing)
      line.steps.forEach((step, i) => {
        if (step < x0 || step > x1) return
        for (const v of [line.drawn[i], line.lo ? line.lo[i] : line.v[i], line.hi ? line.hi[i] : line.v[i]]) {
          if (log && v <= 0) continue
          if (v < low) low = v
          if (v > high) high = v
        }
      })
    }
    if (low > high) [low, high] = log ? [0.1, 1] : [0, 1]
    this.isLog = log && low > 0
    if (this.isLog) {
      const pad = Math.max((high / low) ** 0.06, 1.02)
      low /= pad
      high *= pad
    } else {
      const pad = (high - low) * 0.07 || Math.abs(high) * 0.1 || 0.5
      const [floor, ceiling] = this.spec.limits
      low = floor !== null && low >= floor ? Math.max(low - pad, floor - pad * 0.15) : low - pad
      high = ceiling !== null && high <= ceiling ? Math.min(high + pad, ceiling + pad * 0.15) : high + pad
    }
    const f = this.isLog ? Math.log : v => v
    const width = this.width - MARGIN.left - MARGIN.right
    const height = HEIGHT - MARGIN.top - MARGIN.bottom
    this.low = low
    this.high = high
    this.x = step => MARGIN.left + (step - x0) / (x1 - x0) * width
    this.y = v => MARGIN.top + (f(high) - f(v)) / (f(high) - f(low)) * height
    this.step = px => x0 + (px - MARGIN.left) / width * (x1 - x0)
  }

  draw() {
    this.width = this.plot.clientWidth || 480
    this.scales()
    const svg = shape('svg', { viewBox: `0 0 ${this.width} ${HEIGHT}`, width: this.width, height: HEIGHT, role: 'img' })
    const last = this.values.map(({ line }) => `${line.name} ${line.label} ${fmt(line.last)}`).join(', ')
    svg.setAttribute('aria-label', `${this.spec.title}; last values: ${last}`)
    this.drawAxes(svg)
    const clip = shape('clipPath', { id: `clip-${this.spec.key}` })
    clip.append(shape('rect', { x: MARGIN.left, y: MARGIN.top - 8, width: this.width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom + 12 }))
    const inside = shape('g', { 'clip-path': `url(#clip-${this.spec.key})` })
    this.drawMarks(inside)
    for (const line of this.shown()) this.drawLine(inside, line)
    this.cursor = shape('g', { class: 'cursor' })
    svg.append(clip, inside, this.cursor)
    this.plot.replaceChildren(svg)
    this.svg = svg
  }

  drawAxes(svg) {
    const bottom = HEIGHT - MARGIN.bottom
    const right = this.width - MARGIN.right
    const rough = ticks(this.low, this.high, 5)
    const values = this.isLog ? logTicks(this.low, this.high) : rough.values
    for (const v of values.length > 1 || !this.isLog ? values : [this.low * 1.02, this.high / 1.02]) {
      const y = this.y(v)
      if (y < MARGIN.top - 4 || y > bottom + 2) continue
      svg.append(shape('line', { class: 'grid', x1: MARGIN.left, x2: right, y1: y, y2: y }))
      svg.append(shape('text', { class: 'tick', x: MARGIN.left - 7, y: y + 4, 'text-anchor': 'end' }, this.isLog ? fmt(Number(v.toPrecision(2))) : tickLabel(v, rough.step)))
    }
    const along = ticks(...domain(), Math.max(2, this.width / 90))
    for (const step of along.values.filter(Number.isInteger)) {
      const x = this.x(step)
      svg.append(shape('line', { class: 'tickmark', x1: x, x2: x, y1: bottom, y2: bottom + 4 }))
      const label = step.toLocaleString('en')
      const half = label.length * 3.4
      svg.append(shape('text', { class: 'tick', x: Math.min(x, this.width - half), y: bottom + 17, 'text-anchor': 'middle' }, label))
    }
    svg.append(shape('line', { class: 'axis', x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }))
  }

  drawLine(group, line) {
    // Values that a logarithmic axis has no place for are passed over.
    const placed = values => line.steps.map((_, i) => i).filter(i => !this.isLog || values[i] > 0)
    const keep = placed(line.drawn)
    const path = (values, places = keep) => places.map((i, n) => `${n ? 'L' : 'M'}${this.x(line.steps[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`).join('')
    const colour = `c${line.colour % 8}`
    if (line.hi) {
      const low = v => this.y(this.isLog ? Math.max(v, this.low) : v).toFixed(1)
      const back = [...keep].reverse().map(i => `L${this.x(line.steps[i]).toFixed(1)} ${low(line.lo[i])}`).join('')
      group.append(shape('path', { class: `band ${colour}`, d: `${path(line.hi)}${back}Z` }))
    } else if (view.smoothing) {
      group.append(shape('path', { class: `faint ${colour}`, d: path(line.v, placed(line.v)) }))
    }
    group.append(shape('path', { class: `line ${colour}`, d: path(line.drawn), 'stroke-dasharray': line.dash }))
    const [x0, x1] = domain()
    const seen = keep.filter(i => line.steps[i] >= x0 && line.steps[i] <= x1)
    if (seen.length > 40) return
    for (const i of seen) group.append(shape('circle', { class: `dot ${colour}`, r: 2.2, cx: this.x(line.steps[i]), cy: this.y(line.drawn[i]) }))
  }

  drawMarks(group) {
    const bottom = HEIGHT - MARGIN.bottom
    const metrics = new Set(this.spec.lines.map(line => line.metric))
    for (const [r, run] of data.runs.entries()) {
      if (view.hidden.has(r)) continue
      const ink = several ? `c${r % 8}` : ''
      const mark = (step, name) => group.append(shape('line', { class: `${name} ${ink}`, x1: this.x(step), x2: this.x(step), y1: MARGIN.top - 6, y2: bottom }))
      run.resumedAt.forEach(step => mark(step, 'resume'))
      for (const warning of run.warnings) {
        const own = metrics.has(warning.figure)
        mark(warning.step, own ? 'warning own' : 'warning')
        const x = this.x(warning.step)
        if (own) group.append(shape('path', { class: `flag ${ink}`, d: `M${x - 6} ${MARGIN.top - 7}h12l-6 10z` }))
      }
      for (const metric of metrics) {
        for (const step of run.notFinite[metric] || []) group.append(shape('path', { class: 'broken', d: `M${this.x(step) - 4} ${bottom - 10}l8 8m0 -8l-8 8` }))
      }
    }
  }

  // Show the values nearest to a step; null goes back to the last ones.
  point(step) {
    this.cursor.replaceChildren()
    for (const { line, value } of this.values) {
      const i = step === null ? -1 : nearest(line.steps, step)
      value.textContent = fmt(step === null ? line.last : line.v[i])
      if (step === null || view.hidden.has(line.run)) continue
      const spot = { r: 3.4, cx: this.x(line.steps[i]), cy: this.y(line.drawn[i]), class: `dot c${line.colour % 8}` }
      const hidden = this.isLog && line.drawn[i] <= 0
      if (!hidden) this.cursor.append(shape('circle', spot))
    }
    if (step !== null) this.cursor.prepend(shape('line', { class: 'crosshair', x1: this.x(step), x2: this.x(step), y1: MARGIN.top - 6, y2: HEIGHT - MARGIN.bottom }))
  }

  move(event) {
    const px = event.clientX - this.plot.getBoundingClientRect().left
    if (this.start !== undefined) return this.drag(px)
    const axes = this.shown().map(line => line.steps)
    if (!axes.length || px < MARGIN.left - 6 || px > this.width - MARGIN.right + 6) return this.leave()
    const at = this.step(px)
    const step = axes.map(s => s[nearest(s, at)]).reduce((a, b) => (Math.abs(a - at) <= Math.abs(b - at) ? a : b))
    charts.forEach(chart => chart.point(step))
    this.fillTooltip(step, px)
    tooltip.hidden = false
    placeTooltip(event)
  }

  fillTooltip(step, px) {
    const rows = this.shown().map(line => {
      const i = nearest(line.steps, step)
      const range = line.hi ? ` (${fmt(line.lo[i])} to ${fmt(line.hi[i])})` : view.smoothing ? ` (smoothed ${fmt(line.drawn[i])})` : ''
      const other = line.steps[i] === step ? '' : ` at step ${line.steps[i]}`
      const name = several ? `${line.name}${this.spec.lines.length > 1 ? `, ${line.label}` : ''}` : line.label
      return make('div', { class: 'row' }, make('i', { class: `swatch c${line.colour % 8}` }), `${name} `, make('b', {}, fmt(line.v[i])), `${range}${other}`)
    })
    const near = data.runs.flatMap((run, r) => run.warnings.filter(w => !view.hidden.has(r) && Math.abs(this.x(w.step) - px) < 7))
    const told = near.map(w => make('div', { class: 'row alert' }, `⚠ step ${w.step}: ${w.rule}`))
    tooltip.replaceChildren(make('div', { class: 'step' }, `step ${step.toLocaleString('en')}${this.spec.unit ? ` · ${this.spec.unit}` : ''}`), ...rows, ...told)
  }

  leave() {
    tooltip.hidden = true
    charts.forEach(chart => chart.point(null))
  }

  grab(event) {
    if (event.button) return
    event.preventDefault()
    this.start = event.clientX - this.plot.getBoundingClientRect().left
    this.plot.setPointerCapture(event.pointerId)
    tooltip.hidden = true
    this.plot.addEventListener('pointerup', end => {
      const px = end.clientX - this.plot.getBoundingClientRect().left
      const range = [this.start, px].sort((a, b) => a - b).map(p => Math.min(Math.max(this.step(p), domain()[0]), domain()[1]))
      delete this.start
      if (Math.abs(this.x(range[1]) - this.x(range[0])) > 8) zoom(range)
      else this.point(null)
    }, { once: true })
  }

  drag(px) {
    const [a, b] = [this.start, px].sort((m, n) => m - n)
    this.cursor.replaceChildren(shape('rect', { class: 'selection', x: a, width: b - a, y: MARGIN.top - 6, height: HEIGHT - MARGIN.top - MARGIN.bottom + 6 }))
  }
}

function drawAll() { charts.forEach(chart => chart.draw()) }

function zoom(range) {
  view.domain = range
  document.getElementById('unzoom').hidden = !range
  drawAll()
}
