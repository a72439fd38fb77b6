const SMALL = 48; // pixels, below which smoothing would only blur

/** For `onload` of a picture: a small one is shown as the pixels it is. */
export function sharpen(event: Event): void {
  const image = event.currentTarget as HTMLImageElement;
  image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
}
