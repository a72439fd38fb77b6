/** The one place of what the page knows of the service. Components read it and call its methods; nothing else talks to the
 * service about jobs.
 */

import { SvelteMap, SvelteSet } from "svelte/reactivity";
import { ServiceError, call, send } from "./api";
import { follow } from "./events";
import { applyEvent, isActive, sortQueue, toLive } from "./fold";
import { untilHidden, whenVisible } from "./visible";
import { FINAL, type Event, type Job, type LiveJob, type Model, type RequestKind, type Samplers, type Source, type State, type Values } from "./types";

export type Connection = "connecting" | "open" | "lost" | "locked";

const PAUSE = 1000; // milliseconds before the page tries again to reach the service
const GLANCE = 3000; // milliseconds between two looks at the queue while nobody looks at the tab: its title says how far work is
const MOVES = ["running", "moved", "cancelled"]; // events after which others have another place
const KEPT = ["row", "sample", "picture", "notes", "preview", "text"]; // events that say something about a job that has ended
const SHOWN = 100; // jobs that the page starts with

class Server {
  connection = $state<Connection>("connecting");
  jobs = new SvelteMap<string, LiveJob>();
  /** Ids of pictures and jobs that were deleted, in this tab or another. */
  gone = new SvelteSet<string>();
  requests = $state.raw<RequestKind[]>([]);
  models = $state.raw<Model[]>([]);
  sources = $state.raw<Source[]>([]);
  loras = $state.raw<{ name: string }[]>([]);
  samplers = $state.raw<Samplers>({ samplers: [], spacings: [] });
  limits = $state.raw<Record<string, number>>({});
  /** Said by screen readers as it changes. */
  announcement = $state("");

  queue = $derived(sortQueue(this.jobs.values()));
  newest = $derived([...this.jobs.values()].sort((a, b) => b.created - a.created));
  ready = $derived(this.requests.length > 0);

  private after = 0;
  private newestAtStart = 0;
  private timer = 0;
  /** Events of new jobs that came before the answer that describes the job. */
  private early = new Map<string, Event[]>();
  /** Who waits for a change of a job. */
  private changed: (() => void)[] = [];
  private unlock: () => void = () => undefined;

  /** Read everything, then follow the events; for as long as the page is open. */
  async start(): Promise<void> {
    for (;;) {
      try {
        await this.readAll();
        this.connection = "open";
        await follow("/api/events", this.after, untilHidden(), (events) => this.take(events));
        await this.readWhileHidden();
      } catch (error) {
        const locked = error instanceof ServiceError && error.status === 401;
        this.connection = locked ? "locked" : "lost";
        if (locked) await new Promise<void>((resolve) => (this.unlock = resolve));
        else await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    }
  }

  private async readAll(): Promise<void> {
    const response = await send("GET", `/api/jobs?limit=${SHOWN}`);
    const [jobs, queue] = await Promise.all([response.json() as Promise<Job[]>, call<Job[]>("GET", "/api/queue")]);
    const last = Number(response.headers.get("x-last-event") ?? 0);
    if (!this.after || last < this.after) this.after = last; // else what was said since the last event is told, too
    this.keepAll([...jobs, ...queue]);
    this.newestAtStart = Math.max(0, ...jobs.map((job) => job.created));
    await Promise.all([this.readOffers(), this.readFacts()]);
  }

  private async readWhileHidden(): Promise<void> {
    for (;;) {
      await whenVisible(GLANCE);
      if (!document.hidden) return;
      this.keepAll(await call<Job[]>("GET", "/api/queue"));
    }
  }

  /** What may be named: it changes when a training ends or pictures are uploaded. */
  async readOffers(): Promise<void> {
    const [models, sources, loras, requests] = await Promise.all([
      call<Model[]>("GET", "/api/models"),
      call<Source[]>("GET", "/api/data"),
      call<{ name: string }[]>("GET", "/api/loras"),
      call<RequestKind[]>("GET", "/api/requests"),
    ]);
    Object.assign(this, { models, sources, loras, requests });
  }

  private async readFacts(): Promise<void> {
    const [samplers, limits] = await Promise.all([
      call<Samplers>("GET", "/api/samplers"),
      call<Record<string, number>>("GET", "/api/limits"),
    ]);
    Object.assign(this, { samplers, limits });
  }

  /** Give the key; the service answers with a cookie.
   *
   * @throws ServiceError if it is wrong.
   */
  async open(key: string): Promise<void> {
    await call("POST", "/api/session", { key });
    this.unlock();
  }

  /** Put a request into the queue.
   *
   * @throws ServiceError with the field that is wrong. A model that was deleted meanwhile is taken off the list.
   */
  async submit(name: string, request: Values, query: { run?: string; previews?: "all" } = {}): Promise<LiveJob> {
    const search = new URLSearchParams(query).toString();
    try {
      return this.keep(await call<Job>("POST", `/api/${name}${search && `?${search}`}`, request));
    } catch (error) {
      const model = String(request.model);
      if (!(error instanceof ServiceError) || error.field !== "model" || !this.model(model)) throw error;
      await this.readOffers();
      if (this.model(model)) throw error;
      throw new ServiceError(`The model “${model}” is no longer there: it was deleted or moved. Choose another one.`, error.status, "model");
    }
  }

  async cancel(id: string): Promise<void> {
    this.keep(await call<Job>("DELETE", `/api/jobs/${id}`));
  }

  /** The same request again; a training goes on from its last checkpoint. */
  async again(id: string): Promise<LiveJob> {
    return this.keep(await call<Job>("POST", `/api/jobs/${id}/again`));
  }

  async move(id: string, place: number): Promise<void> {
    await call<Job>("PUT", `/api/jobs/${id}/place?place=${Math.max(0, place)}`);
    this.readQueueSoon();
  }

  async remove(id: string): Promise<void> {
    await call("DELETE", `/api/results/${id}`);
    this.drop(id);
  }

  /** A job by its id, asked for if the page does not know it.
   *
   * @throws ServiceError if there is none.
   */
  async find(id: string): Promise<LiveJob> {
    return this.jobs.get(id) ?? this.keep(await call<Job>("GET", `/api/jobs/${id}`));
  }

  /** The job when it has ended.
   *
   * @throws ServiceError if it failed, with what the service says about it, or was deleted.
   */
  async ended(id: string): Promise<LiveJob> {
    await this.find(id);
    const active = () => this.queue.some((job) => job.id === id);
    while (active()) await new Promise<void>((resolve) => this.changed.push(resolve));
    const job = this.keep(await call<Job>("GET", `/api/jobs/${id}`)); // an event says that it ended, not its result
    if (job.state === "failed") throw new ServiceError(job.error?.message ?? "The job failed.", 500);
    return job;
  }

  /** Read all that a job has said, such as the rows of a training that ended long ago; until the signal, or its end. */
  async watch(id: string, signal: AbortSignal): Promise<void> {
    await this.find(id);
    for (;;) {
      const hidden = untilHidden();
      await follow(`/api/jobs/${id}/events`, 0, AbortSignal.any([signal, hidden]), (events) => {
        const kept = events.filter((event) => KEPT.includes(event.event));
        const job = this.jobs.get(id);
        if (job) this.put(kept.reduce(applyEvent, job));
      });
      if (signal.aborted || !hidden.aborted) return;
      await whenVisible();
    }
  }

  request(name: string): RequestKind | undefined {
    return this.requests.find((one) => one.name === name);
  }

  model(name: string): Model | undefined {
    return this.models.find((one) => one.name === name);
  }

  /** The job of an answer, after the events of it that came before the answer. */
  private keep(job: Job): LiveJob {
    this.put(toLive(job, this.jobs.get(job.id)));
    const early = this.early.get(job.id) ?? [];
    this.early.delete(job.id);
    this.take(early);
    return this.jobs.get(job.id) ?? toLive(job);
  }

  /** Jobs of the queue, and the end of those that are no longer in it. */
  private keepAll(jobs: Job[]): void {
    const before = this.queue.map((job) => job.id);
    for (const job of jobs) this.keep(job);
    for (const id of before) if (!jobs.some((job) => job.id === id)) void this.refresh(id);
  }

  private put(job: LiveJob): void {
    this.jobs.set(job.id, job);
    this.wake();
  }

  private drop(id: string): void {
    this.early.delete(id);
    this.jobs.delete(id);
    this.wake();
  }

  private wake(): void {
    for (const resolve of this.changed.splice(0)) resolve();
  }

  private readQueueSoon(): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.readQueue(), 100);
  }

  private async readQueue(): Promise<void> {
    try {
      this.keepAll(await call<Job[]>("GET", "/api/queue"));
    } catch {
      // nobody answers: all is read again when somebody does
    }
  }

  private take(events: Event[]): void {
    for (const event of events) {
      this.after = Math.max(this.after, event.number);
      const job = this.jobs.get(event.job);
      if (event.event === "deleted") this.forget(event, job);
      else if (job) this.apply(job, event);
      else if (this.early.has(event.job)) this.early.get(event.job)?.push(event);
      else if (event.event === "waiting" && event.time > this.newestAtStart) {
        this.early.set(event.job, []); // a quick job may end before it is described
        void this.refresh(event.job);
      }
    }
  }

  private forget(event: Event, job: LiveJob | undefined): void {
    this.gone.add(String(event.data.file ?? event.job));
    if (event.data.file === undefined) this.drop(event.job);
    else if (job) this.put(applyEvent(job, event));
  }

  private apply(job: LiveJob, event: Event): void {
    const active = isActive(job);
    if (active || KEPT.includes(event.event)) this.put(applyEvent(job, event));
    if (!active) return; // an old event, of a job that was read after it
    if (MOVES.includes(event.event)) this.readQueueSoon();
    if (!FINAL.includes(event.event as State)) return;
    this.announcement = `${job.name.replaceAll("-", " ")}: ${event.event}`;
    void this.refresh(job.id); // its result
    if (job.run || this.jobs.get(job.id)?.error?.param === "model") void this.readOffers().catch(() => undefined); // as above
  }

  private async refresh(id: string): Promise<void> {
    try {
      this.keep(await call<Job>("GET", `/api/jobs/${id}`));
    } catch (error) {
      if (error instanceof ServiceError && error.status === 404) this.drop(id); // deleted in another tab
    }
  }
}

export const server = new Server();
