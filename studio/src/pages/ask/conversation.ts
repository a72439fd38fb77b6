/** A chat as the jobs that it is made of. Pure. */

import type { LiveJob, Values } from "../../server/types";

export type Task = "answer" | "caption" | "detect" | "ocr";

/** What the models read as a task, in words. */
export const TASKS: Record<Task, string> = { answer: "Answer", caption: "Describe it", detect: "Find things", ocr: "Read the text" };

/** What was asked, as it is shown. */
export function questionOf(job: LiveJob): string {
  const { message, raw, question, task, labels } = job.request as Values;
  if (task === "detect") return `Find ${(labels as string[]).join(", ")}`;
  return String(message || raw || question || TASKS[task as Task] || "");
}

/** The request of a message after others. */
export function chatRequest(model: string, message: string, before: LiveJob[]): Values {
  const turns = before.filter((job) => job.name === "chat" && job.state === "done").flatMap((job) => [questionOf(job), textOf(job)]);
  return { model, message, turns };
}

/** The request of a question about a picture. */
export function askRequest(model: string, picture: string, task: Task, words: string): Values {
  const base = { model, picture, task };
  if (task === "answer") return { ...base, question: words };
  const labels = words.split(/[,;\n]+/).map((one) => one.trim()).filter(Boolean);
  return task === "detect" ? { ...base, labels } : base;
}

/** What has been answered so far. */
export function textOf(job: LiveJob): string {
  const text = job.result?.values.text;
  return typeof text === "string" ? text : job.texts.map((one) => one.text).join("");
}
