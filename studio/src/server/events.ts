/** Server-sent events, read with `fetch`: unlike `EventSource` it says why a stream ended. */

import { ServiceError, send } from "./api";
import type { Event, Values } from "./types";

/** Splits text that arrives in pieces into events. */
export class EventReader {
  private rest = "";

  /** The events that are complete with this piece. */
  read(piece: string): Event[] {
    const blocks = (this.rest + piece).split("\n\n");
    this.rest = blocks.pop() ?? "";
    return blocks.map(readEvent).filter((event) => event !== null);
  }
}

/** One block of lines as an event; null for a comment, which only shows that the line is alive. */
export function readEvent(block: string): Event | null {
  let number = 0;
  const data: string[] = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("id:")) number = Number(line.slice(3));
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (data.length === 0) return null;
  const read = JSON.parse(data.join("\n")) as { event: string; job: string; time: number } & Values;
  return { number, event: read.event, job: read.job, time: read.time, data: read };
}

/** Call `take` for every event after a number, until the stream or the signal ends.
 *
 * @throws ServiceError if the service does not answer, or refuses.
 */
export async function follow(
  path: string,
  after: number,
  signal: AbortSignal,
  take: (events: Event[]) => void,
): Promise<void> {
  const reader = new EventReader();
  try {
    const response = await send("GET", `${path}?after=${after}`, undefined, signal);
    const stream = response.body?.pipeThrough(new TextDecoderStream()).getReader();
    while (stream) {
      const { value, done } = await stream.read();
      if (done) return;
      const events = reader.read(value);
      if (events.length) take(events);
    }
  } catch (error) {
    if (signal.aborted) return;
    throw error instanceof ServiceError ? error : new ServiceError("The stream of events was cut.", 0);
  }
}
