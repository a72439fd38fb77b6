/** Lists as people write them. Pure. */

/** One entry a line; empty lines are none. */
export function readList(text: string): string[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

export function writeList(list: unknown, between = "\n"): string {
  return Array.isArray(list) ? list.join(between) : "";
}

/** Numbers with spaces or commas between; what is no number stays text, so that the service says so. */
export function readNumbers(text: string): (number | string)[] {
  return text
    .split(/[\s,;]+/)
    .filter((part) => part !== "")
    .map((part) => (Number.isNaN(Number(part)) ? part : Number(part)));
}

/** Labels with commas, semicolons or line breaks between. */
export function readLabels(text: string): string[] {
  return text
    .split(/[\n,;]+/)
    .map((label) => label.trim())
    .filter((label) => label !== "");
}
