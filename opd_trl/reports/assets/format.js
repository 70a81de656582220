// Figures, ticks and smoothing: functions of numbers alone.

const fmt = v => {
  if (v === null || v === undefined) return '–'
  if (v === 0) return '0'
  const size = Math.abs(v)
  if (size < 1e-3 || size >= 1e6) return v.toExponential(2).replace('e+', 'e')
  if (Number.isInteger(v)) return v.toLocaleString('en')
  return size >= 1000 ? v.toFixed(0) : String(Number(v.toPrecision(4)))
}

// About `count` round values from `low` to `high`.
function ticks(low, high, count) {
  const rough = (high - low) / count
  const power = 10 ** Math.floor(Math.log10(rough))
  const far = m => Math.abs(Math.log(m * power / rough))
  const step = power * [1, 2, 2.5, 5, 10].reduce((a, b) => (far(a) <= far(b) ? a : b))
  const found = []
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step)
  return { values: found, step }
}

// Powers of ten, and 2 and 5 times them where there are few.
function logTicks(low, high) {
  const decades = Math.log10(high / low)
  const factors = decades > 3 ? [1] : decades > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7]
  const found = []
  const skip = Math.max(1, Math.ceil(decades / 6))
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high) + 1; e++) {
    if (e % skip === 0) for (const f of factors) found.push(f * 10 ** e)
  }
  return found.filter(v => v >= low * 0.999 && v <= high * 1.001)
}

// A tick's label with as many digits as its step needs.
function tickLabel(v, step) {
  if (Math.abs(v) < step / 1e6) return '0'
  const size = Math.abs(v)
  if (size >= 1e6 || step < 1e-4) {
    const digits = Math.max(0, Math.ceil(Math.log10(size / step) - 0.01))
    return Number(v.toPrecision(digits + 1)).toExponential().replace('e+', 'e')
  }
  const digits = [0, 1, 2, 3, 4, 5, 6].find(d => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6)
  return v.toLocaleString('en', { maximumFractionDigits: digits ?? 7 })
}

// Exponential moving average, its start corrected for the missing past.
function smoothed(values, weight) {
  if (!weight) return values
  let mean = 0
  let total = 0
  return values.map(v => {
    mean = weight * mean + (1 - weight) * v
    total = weight * total + 1 - weight
    return mean / total
  })
}

// Place of the entry nearest to `x` in a rising list.
function nearest(list, x) {
  let low = 0
  let high = list.length - 1
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (list[middle] <= x) low = middle
    else high = middle
  }
  return x - list[low] <= list[high] - x ? low : high
}

// An element with attributes, classes and children; strings become text, never markup.
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'class') node.className = value
    else if (key.startsWith('on')) node.addEventListener(key.slice(2), value)
    else node.setAttribute(key, value)
  }
  node.append(...children)
  return node
}

function shape(name, attributes = {}, text = null) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
  if (text !== null) node.textContent = text
  return node
}
