import type { Values } from "../../server/types";

/** The settings in which two requests differ, as text. Pure. */
export function differences(left: Values, right: Values): { name: string; left: string; right: string }[] {
  const names = [...new Set([...Object.keys(left), ...Object.keys(right)])];
  return names
    .map((name) => ({ name: name.replaceAll("_", " "), left: show(left[name]), right: show(right[name]) }))
    .filter((row) => row.left !== row.right);
}

function show(value: unknown): string {
  if (value === undefined || value === null || value === "") return "–";
  return Array.isArray(value) ? value.join(", ") : String(value);
}
