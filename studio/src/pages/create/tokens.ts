import { ServiceError, call } from "../../server/api";

export interface Tokens {
  /** Whether the model is in memory: nothing is known before. */
  loaded: boolean;
  /** What the model reads, by window; null where it does not say. */
  windows: { text: string; token: number; weight: number }[][] | null;
  /** Tokens of a window. */
  limit: number;
  /** The words that are lost. */
  cut: string;
  /** What else to know, such as words that the model was not trained on. */
  notes: string[];
}

/** The tokens of a prompt; null if the model cannot read it. */
export async function readTokens(model: string, prompt: string): Promise<Tokens | null> {
  try {
    return await call<Tokens>("POST", "/api/tokens", { model, prompt });
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    return null;
  }
}
