// Controls of the page, and its start.

function startControls() {
  const amount = document.getElementById('smoothing')
  amount.addEventListener('input', () => {
    view.smoothing = Number(amount.value)
    document.getElementById('smoothing-value').textContent = amount.value
    drawAll()
  })
  document.getElementById('log-all').addEventListener('change', event => {
    view.log = event.target.checked
    drawAll()
  })
  document.getElementById('unzoom').addEventListener('click', () => zoom(null))
  document.getElementById('theme').addEventListener('click', () => {
    const root = document.documentElement
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches
    root.dataset.theme = dark ? 'light' : 'dark'
  })
  for (const button of document.querySelectorAll('button[data-run]')) {
    button.addEventListener('click', () => {
      const run = Number(button.dataset.run)
      const hide = !view.hidden.has(run)
      if (hide) view.hidden.add(run)
      else view.hidden.delete(run)
      button.setAttribute('aria-pressed', !hide)
      drawAll()
    })
  }
  // A chart in a folded section has no width until it is opened.
  for (const fold of document.querySelectorAll('details.section')) fold.addEventListener('toggle', drawAll)
  for (const link of document.querySelectorAll('a[href^="#chart-"]')) {
    link.addEventListener('click', () => {
      const fold = document.getElementById(link.hash.slice(1))?.closest('details')
      if (fold) fold.open = true
    })
  }
  let width = innerWidth
  addEventListener('resize', () => {
    if (innerWidth === width) return
    width = innerWidth
    drawAll()
  })
  addEventListener('beforeprint', drawAll)
}

data.charts.forEach(spec => charts.push(new Chart(spec)))
drawAll()
startSamples()
startControls()
document.documentElement.dataset.ready = 'yes'
