import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

// The service of `npm run dev`: start it with `triptych serve --allow-origin http://localhost:5173`.
const SERVICE = "http://127.0.0.1:7860";

export default defineConfig({
  plugins: [svelte()],
  build: {
    outDir: "../src/triptych/server/studio",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the service's content security policy allows no data: URLs but pictures
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: { proxy: { "/api": SERVICE, "/healthz": SERVICE } },
  test: { include: ["tests/**/*.test.ts"] },
});
