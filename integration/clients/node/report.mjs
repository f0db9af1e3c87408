// What the client programs have in common: one JSON argument says what to follow, one
// JSON line is written for whatever happened, and the end of standard input is the end.

export const job = JSON.parse(process.argv[2])

export function report(kind, fields = {}) {
  process.stdout.write(JSON.stringify({ kind, ...fields }) + '\n')
}

export const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
