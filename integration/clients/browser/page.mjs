// Runs in Chromium, on an origin of its own. Asks the test for jobs, one after the other,
// follows each with the browser's own EventSource, WebSocket or fetch, and reports.

const jobs = new Map()

// One report at a time, so that they arrive in order.
let queue = []
let sending = false
async function send() {
  if (sending) return
  sending = true
  while (queue.length > 0) {
    const batch = queue
    queue = []
    await fetch('/report', { method: 'POST', body: JSON.stringify(batch) })
  }
  sending = false
}

const reporter = (job) => (kind, fields = {}) => {
  queue.push({ job: job.number, kind, ...fields })
  send()
}

function eventSource(job, report) {
  const source = new EventSource(job.url)
  source.onopen = () => report('open')
  source.onerror = (e) => {
    // The server's own `event: error` arrives here too; only it has data.
    if (e.data !== undefined) report('event', { type: e.type, id: e.lastEventId, data: e.data })
    else report(source.readyState === EventSource.CLOSED ? 'end' : 'lost')
  }
  for (const type of job.types) {
    source.addEventListener(type, (e) => report('event', { type: e.type, id: e.lastEventId, data: e.data }))
  }
  return () => source.close()
}

// How long to wait before coming back, by the table of close codes; undefined: not at all.
function backAfter(code, reason) {
  if (code === 1006) return 25 // broken off
  if (code < 4003 || code > 4006) return undefined
  return Number(/retry in (\d+) ms/.exec(reason)?.[1] ?? 1000)
}

function webSocket(job, report) {
  let stopped = false
  let lastID = ''
  let socket
  const connect = () => {
    const url = new URL(job.url)
    if (lastID !== '') url.searchParams.set('last_event_id', lastID)
    socket = new WebSocket(url, job.protocols)
    socket.binaryType = 'arraybuffer'
    socket.onopen = () => {
      report('open', { type: socket.protocol })
      for (const { text, binary } of job.send) socket.send(text || Uint8Array.from(atob(binary), (c) => c.charCodeAt(0)))
    }
    socket.onmessage = (e) => {
      if (typeof e.data !== 'string') return report('binary', { data: btoa(String.fromCharCode(...new Uint8Array(e.data))) })
      const frame = JSON.parse(e.data)
      if ('ack' in frame || 'ref' in frame) return report('ack', { data: e.data })
      report('frame', { data: e.data })
      lastID = frame.cursor ?? frame.id ?? frame.event_id ?? lastID
    }
    socket.onclose = (e) => {
      if (stopped) return
      const delay = backAfter(e.code, e.reason)
      if (delay === undefined) return report('end', { code: e.code, data: e.reason })
      report('lost', { code: e.code, data: e.reason })
      setTimeout(() => stopped || connect(), delay)
    }
  }
  connect()
  return () => {
    stopped = true
    socket.close()
  }
}

// One request with headers that need a preflight; reports what a page may see of the answer.
function request(job, report) {
  const gone = new AbortController()
  fetch(job.url, { headers: job.headers, signal: gone.signal }).then(
    async (answer) => {
      report('answer', {
        code: answer.status,
        type: answer.headers.get('X-Request-Id') ?? '',
        data: answer.status === 200 ? '' : await answer.text(),
      })
    },
    (e) => report('refused', { data: String(e) }),
  )
  return () => gone.abort()
}

const kinds = { EventSource: eventSource, WebSocket: webSocket, fetch: request }

for (;;) {
  const { stop, ...job } = await (await fetch('/next')).json()
  if (stop) {
    jobs.get(stop)?.()
    jobs.delete(stop)
    reporter({ number: stop })('stopped')
  } else if (job.number) {
    jobs.set(job.number, kinds[job.api](job, reporter(job)))
  }
}
