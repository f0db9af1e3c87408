// npm eventsource: the browser's API, which resumes by itself. Headers go in through
// fetch, as its documentation says.
import { EventSource } from 'eventsource'
import { job, report } from './report.mjs'

const source = new EventSource(job.url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...job.headers } }),
})
source.onopen = () => report('open')
source.onerror = (e) => {
  // The server's own `event: error` arrives here too; only it has data.
  if (e.data !== undefined) report('event', { type: e.type, id: e.lastEventId, data: e.data })
  else report(source.readyState === EventSource.CLOSED ? 'end' : 'lost', { code: e.code ?? 0 })
}
for (const type of job.types) {
  source.addEventListener(type, (e) => report('event', { type: e.type, id: e.lastEventId, data: e.data }))
}
