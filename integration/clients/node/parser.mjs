// npm eventsource-parser over fetch: resuming is the program's business.
import { createParser } from 'eventsource-parser'
import { job, report, wait } from './report.mjs'

let lastID = ''
let retry = 200
const parser = createParser({
  onEvent: (e) => {
    if (e.id !== undefined) lastID = e.id
    report('event', { type: e.event ?? 'message', id: lastID, data: e.data })
  },
  onComment: (text) => report('comment', { data: text }),
  onRetry: (ms) => {
    retry = ms
    report('retry', { code: ms })
  },
  onError: (e) => report('fault', { data: e.message }),
})

async function follow() {
  const headers = { ...job.headers, Accept: 'text/event-stream' }
  if (lastID !== '') headers['Last-Event-ID'] = lastID
  const answer = await fetch(job.url, { headers })
  if (answer.status !== 200) return answer.status
  report('open')
  parser.reset() // drops what the last connection left unfinished
  for await (const text of answer.body.pipeThrough(new TextDecoderStream())) parser.feed(text)
  return 200
}

for (;;) {
  let status = 0
  try {
    status = await follow()
  } catch {
    // The connection broke: below.
  }
  if (status !== 0 && status !== 200) {
    report('end', { code: status })
    break
  }
  report('lost')
  await wait(retry)
}
