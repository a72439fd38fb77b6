import { mount } from "svelte";
import "./app.css";
import App from "./App.svelte";
import { server } from "./server/store.svelte";
import { applyTheme } from "./theme";

applyTheme();
void server.start();
const target = document.getElementById("app");
if (target) mount(App, { target });
