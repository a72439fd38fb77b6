import { beforeEach, expect, test, vi } from "vitest";
import { ServiceError } from "../src/server/api";
import { server } from "../src/server/store.svelte";
import type { Event, Job, State } from "../src/server/types";

/** A service whose answers and events come when a test says so. */
const asked: { path: string; answer: (job: unknown) => void; refuse: (error: ServiceError) => void }[] = [];
let say: (events: Event[]) => void = () => undefined;
let cut: (error: ServiceError) => void = () => undefined;
const followedAfter: number[] = [];
let last = 7;

vi.mock("../src/server/api", async (original) => ({
  ...(await original<typeof import("../src/server/api")>()),
  send: async () => ({ json: async () => [], headers: new Headers({ "x-last-event": String(last) }) }),
  call: (_: string, path: string) =>
    path.startsWith("/api/jobs/") || path === "/api/text-to-image"
      ? new Promise((answer, refuse) => asked.push({ path, answer, refuse }))
      : Promise.resolve([]),
}));
vi.mock("../src/server/events", () => ({
  follow: (_: string, after: number, signal: AbortSignal, take: typeof say) => {
    followedAfter.push(after);
    say = take;
    return new Promise((_, reject) => void ([signal, cut] = [signal, reject]));
  },
}));

vi.mock("../src/server/visible", () => ({ untilHidden: () => new AbortController().signal, whenVisible: () => new Promise(() => undefined) }));

const job = (id: string, state: State, more: Partial<Job> = {}): Job =>
  ({ id, name: "text-to-image", state, request: {}, place: null, created: 1, started: null, finished: null, run: "", result: null, error: null, done: null, ...more }) as Job;
let number = 7;
const event = (id: string, kind: string, data = {}): Event => ({ number: ++number, event: kind, job: id, time: 2, data });
const settle = () => new Promise((resolve) => setTimeout(resolve, 0));

/** Send a request that is answered with this job. */
async function submitted(answer: Job): Promise<void> {
  const sent = server.submit("text-to-image", {});
  asked[0]?.answer(answer);
  await sent;
}

void server.start();
beforeEach(async () => {
  await settle();
  asked.length = 0;
  server.jobs.clear();
});

test("a job that ends before the answer to its request is done", async () => {
  const sent = server.submit("text-to-image", {});
  say(["waiting", "running", "done"].map((kind) => event("quick", kind)));
  const [request, read] = asked;
  read?.answer(job("quick", "running")); // was read before its end
  request?.answer(job("quick", "waiting"));
  await sent;
  expect(server.jobs.get("quick")?.state).toBe("done");
});

test("a job of another tab that ends while it is asked for is done, with its result", async () => {
  say([event("other", "waiting")]);
  say([event("other", "running"), event("other", "picture", { id: "p", url: "/p" }), event("other", "done")]);
  asked[0]?.answer(job("other", "running"));
  await settle();
  expect(server.jobs.get("other")).toMatchObject({ state: "done", pictures: [{ id: "p" }] });
  asked[1]?.answer(job("other", "done", { result: { values: { seen: 1 }, pictures: [] } }));
  await settle();
  expect(server.jobs.get("other")?.result?.values).toEqual({ seen: 1 });
});

test("who waits for the end of a job is told by the one stream of all events", async () => {
  await submitted(job("long", "waiting"));
  const ended = server.ended("long");
  await settle();
  say([event("long", "running"), event("long", "done")]);
  await settle();
  for (const { path, answer } of asked.slice(1)) {
    expect(path).toBe("/api/jobs/long");
    answer(job("long", "done", { result: { values: {}, pictures: [] } }));
  }
  expect((await ended).state).toBe("done");
});

test("who waits for a job that is deleted is told so", async () => {
  await submitted(job("gone", "waiting"));
  const ended = server.ended("gone");
  await settle();
  say([event("gone", "deleted")]);
  await settle();
  asked[1]?.refuse(new ServiceError("There is no such job.", 404));
  await expect(ended).rejects.toThrow("no such job");
});

test("what was said while the line was cut is told afterwards; a service that begins anew is heard", async () => {
  say([event("long", "running")]);
  for (const [newest, after] of [[number + 5, number], [2, 2]] as const) {
    last = newest;
    cut(new ServiceError("The stream of events was cut.", 0));
    await vi.waitFor(() => expect(followedAfter.at(-1)).toBe(after), 5000);
  }
});

test("of a training that ended meanwhile the rows between are shown", async () => {
  await submitted(job("trained", "done"));
  say([event("trained", "row", { step: 3, loss: 1 }), event("trained", "running")]);
  expect(server.jobs.get("trained")).toMatchObject({ state: "done", rows: [{ step: 3, loss: 1 }] });
});
