import { describe, expect, test } from "vitest";
import type { Field } from "../src/form/schema";
import { readLabels, readList, readNumbers } from "../src/form/lists";
import { cellsOf, readAxis, tableOf } from "../src/pages/create/grid";
import { columnsOf } from "../src/pages/create/columns";
import { differences } from "../src/pages/library/differences";

const field = (path: string, kind: Field["kind"]): Field => ({ path, kind, label: path, names: undefined, optional: false, required: false, default: null, help: "", choices: [] });

describe("a grid of settings", () => {
  test("has a request for every pair of values, each of one picture", () => {
    const cells = cellsOf({ prompt: "a cat", seed: 3, n: 8 }, { path: "guidance", values: [1, 4] }, { path: "steps", values: [5, 10, 20] });
    expect(cells).toHaveLength(6);
    expect(cells[1]).toEqual({ prompt: "a cat", seed: 3, n: 1, guidance: 4, steps: 5 });
    expect(cells.every((cell) => cell.seed === 3 && cell.n === 1)).toBe(true);
  });

  test("is found again from its jobs, in any order of their ends", () => {
    const cells = cellsOf({}, { path: "guidance", values: [1, 4] }, { path: "steps", values: [5, 10] });
    const jobs = cells.map((request, number) => ({ id: String(number), request }));
    const table = tableOf(jobs, "guidance", "steps");
    expect(table.columns).toEqual([1, 4]);
    expect(table.rows.map((row) => row.value)).toEqual([5, 10]);
    expect(table.rows.map((row) => row.cells.map((cell) => cell?.id))).toEqual([["0", "1"], ["2", "3"]]);
  });

  test("a strip is a grid of one row", () => {
    const jobs = cellsOf({}, { path: "sampler", values: ["euler", "ddim"] }).map((request) => ({ request }));
    const table = tableOf(jobs, "sampler");
    expect(table.rows).toHaveLength(1);
    expect(table.rows[0]?.cells).toHaveLength(2);
  });

  test("values of an axis are numbers where the field has numbers; prompts keep their commas", () => {
    expect(readAxis(field("steps", "whole"), "5, 10; 20")).toEqual([5, 10, 20]);
    expect(readAxis(field("sampler", "words"), "euler, ddim")).toEqual(["euler", "ddim"]);
    expect(readAxis(field("prompt", "words"), "a cat, sleeping\na dog")).toEqual(["a cat, sleeping", "a dog"]);
    expect(readAxis(field("steps", "whole"), "many")).toEqual(["many"]); // the service says what is wrong
  });

  test("pictures are shown near a square", () => {
    expect([1, 2, 4, 5, 9, 10, 64].map(columnsOf)).toEqual([1, 2, 2, 3, 3, 4, 5]);
  });
});

describe("lists as people write them", () => {
  test("lines, labels and numbers", () => {
    expect(readList(" a b \n\nc")).toEqual(["a b", "c"]);
    expect(readLabels("cat, dog;\n a red bus ,")).toEqual(["cat", "dog", "a red bus"]);
    expect(readNumbers("64 128,256 x")).toEqual([64, 128, 256, "x"]);
  });
});

test("two requests are compared by what differs", () => {
  const rows = differences({ prompt: "a", seed: 1, sampler: "" }, { prompt: "a", seed: 2, steps: 5, sampler: null });
  expect(rows).toEqual([
    { name: "seed", left: "1", right: "2" },
    { name: "steps", left: "–", right: "5" },
  ]);
});
