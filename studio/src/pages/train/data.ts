/** Folders of pictures from the page to the service. */

import { call } from "../../server/api";

export interface NamedFile {
  file: File;
  /** With its folders, which are classes: `cats/1.png`. */
  name: string;
}

interface Made {
  name: string;
  pictures: number;
  skipped: Record<string, string>;
}

/** All files of what was dropped, those of folders too. */
export async function readDropped(dropped: DataTransfer): Promise<NamedFile[]> {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  return (await Promise.all(entries.map((entry) => readEntry(entry, "")))).flat();
}

async function readEntry(entry: FileSystemEntry, folder: string): Promise<NamedFile[]> {
  const name = folder + entry.name;
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    return [{ file, name }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: NamedFile[] = [];
  for (;;) {
    const part = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (part.length === 0) return found;
    for (const inner of part) found.push(...(await readEntry(inner, `${name}/`)));
  }
}

/** Files in parts that one upload may have. Pure. */
export function partsOf<One extends { file: { size: number } }>(files: One[], most: number, bytes: number): One[][] {
  const parts: One[][] = [];
  let size = Infinity;
  for (const one of files) {
    const part = parts.at(-1);
    if (!part || part.length >= most || size + one.file.size > bytes) {
      parts.push([one]);
      size = one.file.size;
    } else {
      part.push(one);
      size += one.file.size;
    }
  }
  return parts;
}

/** Make a data set of files, in as many uploads as it takes.
 *
 * @throws ServiceError with what the service does not take.
 */
export async function uploadDataSet(files: NamedFile[], limits: Record<string, number>, tell: (done: number) => void): Promise<Made> {
  const [first, ...rest] = partsOf(files, limits.files_per_upload ?? 512, (limits.body_bytes ?? 32 << 20) / 2);
  const title = files[0]?.name.split("/")[0] ?? "pictures";
  let made = await call<Made>("POST", "/api/data-sets", formOf(first ?? [], title));
  const name = made.name;
  let skipped = made.skipped;
  let done = first?.length ?? 0;
  tell(done);
  for (const part of rest) {
    made = await call<Made>("POST", `/api/data-sets/${name}/pictures`, formOf(part));
    skipped = { ...skipped, ...made.skipped };
    done += part.length;
    tell(done);
  }
  return { name, pictures: made.pictures, skipped };
}

function formOf(files: NamedFile[], title?: string): FormData {
  const form = new FormData();
  if (title) form.append("title", title);
  for (const { file, name } of files) form.append("files", file, name);
  return form;
}
