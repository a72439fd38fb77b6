/** One call of the service. Errors are those of the service, in its words. */

import { nameFields } from "../form/schema";

export class ServiceError extends Error {
  constructor(
    message: string,
    readonly status: number,
    /** The field of the request that it is about, such as `training.steps`. */
    readonly field: string | null = null,
  ) {
    super(message);
  }
}

export const OFFLINE = "The service does not answer. It may have been stopped: start it again with `triptych serve`.";

/** Send a request and read the answer as JSON.
 *
 * @throws ServiceError with the sentence of the service; status 0 if nobody answers.
 */
export async function call<Answer>(method: string, path: string, body?: unknown): Promise<Answer> {
  const response = await send(method, path, body);
  return (response.status === 204 ? null : await response.json()) as Answer;
}

/** As `call`, for whoever needs the headers too, or wants to end the answer. */
export async function send(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const form = body instanceof FormData;
  const init: RequestInit = signal ? { method, signal } : { method };
  if (body !== undefined) init.body = form ? body : JSON.stringify(body);
  if (body !== undefined && !form) init.headers = { "content-type": "application/json" };
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new ServiceError(OFFLINE, 0);
  }
  if (!response.ok) throw await readError(response);
  return response;
}

async function readError(response: Response): Promise<ServiceError> {
  try {
    const { error } = (await response.json()) as { error: { message: string; param: string | null } };
    return new ServiceError(nameFields(error.message), response.status, error.param);
  } catch {
    return new ServiceError(`The service answered ${response.status}.`, response.status);
  }
}
