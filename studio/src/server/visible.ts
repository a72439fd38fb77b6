/** Whether somebody looks at this tab. A browser opens six connections to a service for all its tabs together, so only the
 * tabs that are looked at may hold one.
 */

/** Aborted once the tab is no longer looked at. */
export function untilHidden(): AbortSignal {
  const hidden = new AbortController();
  const look = () => {
    if (!document.hidden) return;
    document.removeEventListener("visibilitychange", look);
    hidden.abort();
  };
  document.addEventListener("visibilitychange", look);
  look();
  return hidden.signal;
}

/** Wait until the tab is looked at, or for some milliseconds. */
export function whenVisible(most?: number): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (!document.hidden) end();
    };
    const end = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    const timer = most === undefined ? undefined : setTimeout(end, most);
    document.addEventListener("visibilitychange", look);
    look();
  });
}
