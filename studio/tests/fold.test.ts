import { describe, expect, test, vi } from "vitest";
import { EventReader, follow, readEvent } from "../src/server/events";
import { applyEvent, sortQueue, titleOf, toLive } from "../src/server/fold";
import { askRequest, chatRequest, textOf } from "../src/pages/ask/conversation";
import type { Event, Job, LiveJob, State, Values } from "../src/server/types";

function job(id: string, state: State = "waiting", more: Partial<Job> = {}): LiveJob {
  return toLive({ id, name: "text-to-image", state, request: {}, place: 0, created: 1, started: null, finished: null, run: "", result: null, error: null, done: null, ...more });
}

let number = 0;
function event(kind: string, data: Values = {}): Event {
  number += 1;
  return { number, event: kind, job: "a", time: 10 + number, data };
}

const fold = (start: LiveJob, events: Event[]) => events.reduce(applyEvent, start);

describe("a stream of events", () => {
  const nobodyAnswers = () => Promise.reject(new TypeError("Failed to fetch"));

  test("that is left before it began ends quietly; one that nobody answers does not", async () => {
    vi.stubGlobal("fetch", nobodyAnswers);
    await expect(follow("/api/events", 0, AbortSignal.abort(), () => undefined)).resolves.toBeUndefined();
    await expect(follow("/api/events", 0, new AbortController().signal, () => undefined)).rejects.toThrow("does not answer");
    vi.unstubAllGlobals();
  });

  test("that is left in the middle ends quietly; one that is cut does not", async () => {
    for (const leaves of [true, false]) {
      const left = new AbortController();
      const body = new ReadableStream({ start: (line) => setTimeout(() => (leaves && left.abort(), line.error(new Error("cut")))) });
      vi.stubGlobal("fetch", async () => new Response(body));
      const followed = follow("/api/events", 0, left.signal, () => undefined);
      await (leaves ? expect(followed).resolves.toBeUndefined() : expect(followed).rejects.toThrow("was cut"));
    }
    vi.unstubAllGlobals();
  });
});

describe("events of a job", () => {
  test("tell its state, how far it is, and what it has drawn", () => {
    const picture = { id: "p", url: "/api/files/p", kind: "made", width: 8, height: 8, facts: {} };
    const events = [event("running"), event("loading", { model: "m" }), event("progress", { done: 0.25 }), event("preview", { done: 0.25, url: "data:," }), event("picture", picture)];
    const now = fold(job("a"), events);
    expect(now).toMatchObject({ state: "running", place: null, done: 0.25, loading: "" });
    expect(now.previews).toEqual([{ done: 0.25, url: "data:," }]);
    expect(now.pictures.map((one) => one.id)).toEqual(["p"]);
  });

  test("replayed late keep their order: previews by the work, texts by number", () => {
    const one = event("preview", { done: 0.1, url: "a" });
    const two = event("preview", { done: 0.2, url: "b" });
    expect(fold(job("a", "running"), [two, one, two]).previews.map(({ url }) => url)).toEqual(["a", "b"]);
    const words = ["a ", "cat"].map((text) => event("text", { new: text }));
    const late = [words[1], words[0], words[1]].filter((each) => each !== undefined);
    expect(textOf(fold(job("a", "running"), late))).toBe("a cat");
  });

  test("take a picture away that was deleted", () => {
    const shown = fold(job("a", "running"), [event("picture", { id: "p" }), event("picture", { id: "q" }), event("deleted", { file: "p" })]);
    expect(shown.pictures.map(({ id }) => id)).toEqual(["q"]);
  });

  test("read twice, as after a lost connection, give the same", () => {
    const picture = { id: "p", url: "/api/files/p" };
    const events = [event("running"), event("picture", picture), event("row", { step: 20, loss: 0.5 }), event("row", { step: 40, loss: 0.4 })];
    const once = fold(job("a"), events);
    const twice = fold(once, events);
    expect(twice.pictures).toEqual(once.pictures);
    expect(twice.rows).toEqual(once.rows);
    expect(twice.rows).toHaveLength(2);
  });

  test("sentences name fields by their labels: errors and notes, now and from before", () => {
    const said = [event("notes", { notes: ["a `batch_size`"] }), event("failed", { error: { message: "no `steps`", param: "steps" } })];
    expect(fold(job("a", "running"), said)).toMatchObject({ notes: ["a “Batch size”"], error: { message: "no “Steps”", param: "steps" } });
    const before = job("a", "failed", { error: { message: "no `steps`" }, result: { values: { notes: ["a `batch_size`"] }, pictures: [] } });
    expect(before).toMatchObject({ notes: ["a “Batch size”"], error: { message: "no “Steps”" } });
  });

  test("an end has its time and its error, and what was drawn stays", () => {
    const now = fold(job("a", "running"), [event("picture", { id: "p" }), event("failed", { error: { message: "no" } })]);
    expect(now.state).toBe("failed");
    expect(now.error?.message).toBe("no");
    expect(now.finished).toBeGreaterThan(0);
    expect(now.pictures).toHaveLength(1);
  });

  test("an unknown kind changes nothing", () => {
    const before = job("a");
    expect(applyEvent(before, event("surprise"))).toBe(before);
  });

  test("a job that is read again keeps what its events have said", () => {
    const live = fold(job("a", "running"), [event("progress", { done: 0.5 }), event("row", { step: 1, loss: 1 })]);
    const again = toLive({ ...job("a", "running") }, live);
    expect(again.done).toBe(0.5);
    expect(again.rows).toHaveLength(1);
  });

  test("an answer that comes after the events that followed it does not turn the job back", () => {
    const ended = fold(job("a", "waiting"), [event("running"), event("done")]);
    for (const late of ["waiting", "running", "cancelling"] as const) expect(toLive(job("a", late), ended).state).toBe("done");
    expect(toLive(job("a", "waiting"), fold(job("a"), [event("running")])).state).toBe("running");
    const result = { values: {}, pictures: [] };
    expect(toLive(job("a", "done", { result }), ended).result).toEqual(result);
  });
});

describe("the queue", () => {
  test("is what runs, then what waits by its place; what has ended is not in it", () => {
    const jobs = [job("later", "waiting", { place: 1 }), job("done", "done"), job("next", "waiting", { place: 0 }), job("now", "running", { place: null })];
    expect(sortQueue(jobs).map((one) => one.id)).toEqual(["now", "next", "later"]);
  });

  test("is told by the tab's title", () => {
    expect(titleOf([], true)).toBe("Triptych");
    const running = { ...job("now", "running", { place: null }), done: 0.424 };
    expect(titleOf([running], true)).toBe("42 % – Triptych");
    expect(titleOf([running, job("next")], true)).toBe("42 % +1 – Triptych");
    expect(titleOf([running], false)).toContain("no connection");
  });
});

describe("a stream of events", () => {
  const block = 'event: progress\nid: 7\ndata: {"event": "progress", "job": "a", "time": 1.5, "done": 0.5}';

  test("is read in pieces of any size", () => {
    const text = `: alive\n\n${block}\n\n${block.replace("id: 7", "id: 8")}\n\n`;
    for (const size of [1, 3, 50, 1000]) {
      const reader = new EventReader();
      const found = [];
      for (let at = 0; at < text.length; at += size) found.push(...reader.read(text.slice(at, at + size)));
      expect(found.map((one) => one.number)).toEqual([7, 8]);
      expect(found[0]).toMatchObject({ event: "progress", job: "a", data: { done: 0.5 } });
    }
  });

  test("a comment is no event", () => {
    expect(readEvent(": keep-alive")).toBeNull();
  });
});

describe("a chat", () => {
  const said = (id: string, message: string, text: string, state: State = "done") =>
    job(id, state, { name: "chat", request: { message }, result: { values: { text }, pictures: [] } });

  test("sends what was said before, without what was stopped", () => {
    const before = [said("a", "hello", "hi"), said("b", "stop", "st", "cancelled")];
    expect(chatRequest("gemma", "and now?", before)).toEqual({ model: "gemma", message: "and now?", turns: ["hello", "hi"] });
  });

  test("about a picture has the words that its task reads", () => {
    expect(askRequest("m", "p", "detect", "a cat; dog,")).toEqual({ model: "m", picture: "p", task: "detect", labels: ["a cat", "dog"] });
    expect(askRequest("m", "p", "caption", "x")).toEqual({ model: "m", picture: "p", task: "caption" });
    expect(askRequest("m", "p", "answer", "what?")).toEqual({ model: "m", picture: "p", task: "answer", question: "what?" });
  });
});
