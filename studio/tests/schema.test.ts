import { describe, expect, test } from "vitest";
import { appliesTo, fieldOfError, isChanged, labelOf, nameFields, readFields, toRequest, toValues } from "../src/form/schema";
import type { Schema } from "../src/server/types";

const TRAINING: Schema = {
  type: "object",
  properties: { data: { type: "string", names: "data", default: "digits" }, steps: { type: "integer", default: 1000 } },
};
const SCHEMA: Schema = {
  type: "object",
  required: ["prompt"],
  properties: {
    prompt: { anyOf: [{ type: "string" }, { type: "array", items: { type: "string" } }], description: "What to draw." },
    guidance: { anyOf: [{ type: "number" }, { type: "null" }], default: null },
    n: { type: "integer", default: 1 },
    sampler_order: { enum: ["", "two"], default: "" },
    widths: { type: "array", items: { type: "integer" }, default: [64, 128] },
    labels: { type: "array", items: { type: "string" }, names: "labels", default: [] },
    index: { type: "string", names: "file", default: "" },
    training: { ...TRAINING, default: { data: "scenes", steps: 50 } },
  },
};

describe("fields of a schema", () => {
  const fields = readFields(SCHEMA);
  const find = (path: string) => fields.find((field) => field.path === path);

  test("each has a kind, inner ones their path, files none at all", () => {
    expect(fields.map(({ path, kind }) => [path, kind])).toEqual([
      ["prompt", "words"],
      ["guidance", "number"],
      ["n", "whole"],
      ["sampler_order", "choice"],
      ["widths", "numbers"],
      ["labels", "list"],
      ["training.data", "words"],
      ["training.steps", "whole"],
    ]);
  });

  test("a field says whether it is required, and whether the model decides where it is empty", () => {
    expect(find("prompt")?.required).toBe(true);
    expect(find("n")?.required).toBe(false);
    expect(find("guidance")?.optional).toBe(true);
    expect(find("n")?.optional).toBe(false);
  });

  test("an inner object's default is that of the outer one", () => {
    expect(find("training.steps")?.default).toBe(50);
  });

  test("labels are words", () => {
    expect(labelOf("training.batch_size")).toBe("Batch size");
    expect(labelOf("n")).toBe("Pictures");
  });

  test("a sentence of the service names fields by their labels, and commands as they are", () => {
    expect(nameFields("take a `batch_size` of 4, or `image`")).toBe("take a “Batch size” of 4, or “Start from a picture”");
    expect(nameFields("`triptych train clip` and `a.json`")).toBe("`triptych train clip` and `a.json`");
  });

  test("an error of the service is found beside its field", () => {
    expect(fieldOfError("labels[2]", fields)?.path).toBe("labels");
    expect(fieldOfError("training.steps", fields)?.path).toBe("training.steps");
    expect(fieldOfError("steps", fields)?.path).toBe("training.steps");
    expect(fieldOfError("nothing", fields)).toBeUndefined();
    expect(fieldOfError(null, fields)).toBeUndefined();
    expect(fieldOfError(null, fields, "TextToImage: guidance must be 0 to 100, not -3.0")?.path).toBe("guidance");
    expect(fieldOfError(null, fields, "Training: steps must be at least 1")?.path).toBe("training.steps");
    expect(fieldOfError(null, fields, "the queue is full")).toBeUndefined();
  });
});

describe("a form as a request", () => {
  const fields = readFields(SCHEMA);

  test("only what differs from the defaults is sent", () => {
    expect(toRequest(fields, { prompt: "a cat", n: 1, guidance: undefined, widths: [64, 128] })).toEqual({ prompt: "a cat" });
    expect(toRequest(fields, { guidance: 0 })).toEqual({ guidance: 0 });
  });

  test("an inner object is sent whole once one of its fields is changed", () => {
    expect(toRequest(fields, { "training.steps": 7 })).toEqual({ training: { data: "scenes", steps: 7 } });
    expect(toRequest(fields, { "training.steps": 50 })).toEqual({});
  });

  test("a request that was made fills the form so that the same is sent", () => {
    const request = { prompt: "a cat", guidance: 3, training: { data: "digits", steps: 7 } };
    expect(toRequest(fields, toValues(request))).toEqual(request);
    expect(toValues({ guidance: null })).toEqual({});
  });

  test("an empty list is a change only where the default is none", () => {
    const [labels, widths] = [fields.find((f) => f.path === "labels"), fields.find((f) => f.path === "widths")];
    expect(labels && isChanged(labels, [])).toBe(false);
    expect(widths && isChanged(widths, [])).toBe(true);
  });
});

test("a field whose help names other kinds of model does nothing for this one", () => {
  const [steps, truncation, seed] = readFields({
    properties: {
      steps: { type: "integer", description: "Diffusion: steps of the sampler." },
      truncation: { type: "number", description: "GAN, VAE: truncate the noise." },
      seed: { type: "integer", description: "Picture i uses seed + i." },
    },
  });
  const table = ["cvae", "wgan", "pixel-diffusion", "stable-diffusion", null].map((kind) => [steps, truncation, seed].map((field) => field && appliesTo(field, kind)));
  expect(table).toEqual([
    [false, true, true],
    [false, true, true],
    [true, false, true],
    [true, true, true],
    [true, true, true],
  ]);
});
