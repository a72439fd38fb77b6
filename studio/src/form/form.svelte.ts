import { ServiceError } from "../server/api";
import type { Schema, Values } from "../server/types";
import { type Field, fieldOfError, readFields, toRequest, toValues } from "./schema";

/** What is filled in, and what the service has said about it. */
export class Form {
  values = $state<Values>({});
  /** By the path of the field; under `""` what is about none. */
  errors = $state<Record<string, string>>({});
  fields = $state.raw<Field[]>([]);

  /** Take the fields of a request; values of fields that it has too stay. */
  use(schema: Schema): void {
    this.fields = readFields(schema);
  }

  field(path: string): Field | undefined {
    return this.fields.find((field) => field.path === path);
  }

  /** Fill in a request, and empty everything else. */
  fill(request: Values): void {
    this.values = toValues(request);
    this.errors = {};
  }

  toRequest(): Values {
    return toRequest(this.fields, $state.snapshot(this.values) as Values);
  }

  /** Show an error beside the field that it is about. */
  show(error: unknown): void {
    if (!(error instanceof ServiceError)) throw error;
    const field = fieldOfError(error.field, this.fields, error.message);
    this.errors = { [field?.path ?? ""]: error.message };
  }

  /** Run a call, and show its error. Returns undefined then. */
  async try<Result>(work: () => Promise<Result>): Promise<Result | undefined> {
    this.errors = {};
    try {
      return await work();
    } catch (error) {
      this.show(error);
      return undefined;
    }
  }
}
