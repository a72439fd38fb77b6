/** Events to jobs: the page's state is a function of what the service has said. Pure. */

import { nameFields } from "../form/schema";
import { FINAL, type Event, type Job, type LiveJob, type Picture, type Preview, type State } from "./types";

const KEPT_PREVIEWS = 200;

const BEFORE: State[] = ["waiting", "running", "cancelling"]; // its end

/** How far a job is: it only ever goes on. */
function stageOf({ state }: Job): number {
  return FINAL.includes(state) ? BEFORE.length : BEFORE.indexOf(state);
}

/** A job as the service describes it, with room for what events will say. What was known already is kept; an answer that
 * comes later than the events after it says nothing new.
 */
export function toLive(job: Job, known?: LiveJob): LiveJob {
  if (known && stageOf(job) < stageOf(known)) return known;
  return {
    ...job,
    error: sayError(job.error),
    done: job.done ?? known?.done ?? null,
    pictures: job.result?.pictures ?? known?.pictures ?? [],
    previews: known?.previews ?? [],
    rows: known?.rows ?? [],
    notes: known?.notes ?? readNotes(job),
    loading: known?.loading ?? "",
    step: known?.step ?? readNumber(job, "step"),
    steps: known?.steps ?? readNumber(job, "steps"),
    texts: known?.texts ?? [],
  };
}

function readNumber(job: Job, name: string): number | null {
  const value = job.result?.values[name];
  return typeof value === "number" ? value : null;
}

function readNotes(job: Job): string[] {
  const notes = job.result?.values.notes;
  return Array.isArray(notes) ? notes.map(sayNote) : [];
}

function sayNote(note: unknown): string {
  return nameFields(String(note));
}

function sayError(error: Job["error"] | undefined): Job["error"] {
  return error ? { ...error, message: nameFields(error.message) } : null;
}

/** The job after an event. An event that says nothing new changes nothing. */
export function applyEvent(job: LiveJob, { event, data, time, number }: Event): LiveJob {
  switch (event) {
    case "running":
      return { ...job, state: "running", place: null, started: time, done: job.done ?? 0 };
    case "waiting":
    case "cancelling":
    case "done":
    case "failed":
    case "cancelled":
    case "interrupted":
      return changeState(job, event, data.error as Job["error"] | undefined, time);
    case "loading":
      return { ...job, loading: String(data.model) };
    case "notes":
      return { ...job, notes: (data.notes as string[]).map(sayNote) };
    case "progress":
      return {
        ...job,
        loading: "",
        done: Number(data.done),
        step: data.step === undefined ? job.step : Number(data.step),
        steps: data.steps === undefined ? job.steps : Number(data.steps),
      };
    case "preview":
      return { ...job, previews: addPreview(job.previews, data as unknown as Preview) };
    case "text":
      return { ...job, texts: addText(job.texts, number, String(data.new)) };
    case "deleted":
      return { ...job, pictures: job.pictures.filter((picture) => picture.id !== data.file) };
    case "picture":
    case "sample":
      return { ...job, pictures: addPicture(job.pictures, data as unknown as Picture) };
    case "row":
      return { ...job, rows: addRow(job.rows, data as Record<string, number | null>) };
    default:
      return job;
  }
}

function changeState(job: LiveJob, state: State, error: Job["error"] | undefined, time: number): LiveJob {
  const ended = FINAL.includes(state);
  return {
    ...job,
    state,
    error: sayError(error) ?? job.error,
    finished: ended ? time : job.finished,
    loading: ended ? "" : job.loading,
    done: state === "done" ? 1 : job.done,
  };
}

function addText(texts: LiveJob["texts"], number: number, text: string): LiveJob["texts"] {
  if (texts.some((one) => one.number === number)) return texts; // from a stream that is read twice
  return [...texts, { number, text }].sort((a, b) => a.number - b.number);
}

/** In the order of the work: a stream that is read a second time brings the first ones late. */
function addPreview(previews: Preview[], { done, url }: Preview): Preview[] {
  const others = previews.filter((one) => one.done !== done);
  return [...others, { done, url }].sort((a, b) => a.done - b.done).slice(-KEPT_PREVIEWS);
}

function addPicture(pictures: Picture[], picture: Picture): Picture[] {
  return pictures.some((one) => one.id === picture.id) ? pictures : [...pictures, picture];
}

/** A resumed training repeats no step, and a stream that is read twice repeats all of them. */
function addRow(rows: LiveJob["rows"], { step, ...row }: Record<string, number | null>): LiveJob["rows"] {
  const clean = { step: step ?? null, ...row };
  const at = rows.findIndex((one) => one.step === clean.step);
  return at < 0 ? [...rows, clean] : rows.with(at, { ...rows[at], ...clean });
}

export function isActive(job: Job): boolean {
  return !FINAL.includes(job.state);
}

/** What runs, then what waits, in the order in which it will run. */
export function sortQueue(jobs: Iterable<LiveJob>): LiveJob[] {
  return [...jobs]
    .filter(isActive)
    .sort((a, b) => (a.place ?? -1) - (b.place ?? -1) || a.created - b.created);
}

/** The title of the tab: how far the work is, where one looks for it. */
export function titleOf(queue: LiveJob[], connected: boolean): string {
  if (!connected) return "Triptych – no connection";
  const running = queue.find((job) => job.state !== "waiting");
  if (!running) return "Triptych";
  const waiting = queue.length - 1;
  return `${Math.round(100 * (running.done ?? 0))} %${waiting ? ` +${waiting}` : ""} – Triptych`;
}
