import { ServiceError, call } from "../../server/api";

export interface Tokens {
  /** What the model reads, by window; null where it does not say. */
  windows: { text: string; weight?: number }[][] | null;
  limit: number;
  /** The words that are lost. */
  cut: string;
}

let offered = true;

/** The tokens of a prompt; null if the service or the model cannot say. */
export async function readTokens(model: string, prompt: string): Promise<Tokens | null> {
  if (!offered) return null;
  try {
    return await call<Tokens>("POST", "/api/tokens", { model, prompt });
  } catch (error) {
    offered = !(error instanceof ServiceError && [404, 405].includes(error.status));
    return null;
  }
}
