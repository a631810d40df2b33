// Filters the gallery. The filters' state lives in the address (#q=...&seam=...&verdict=...), so that a view can be
// linked and the back button works. Without this script every paper is shown.
"use strict";

(() => {
  const form = document.getElementById("filters");
  const matches = document.getElementById("matches");
  const reset = document.getElementById("reset");
  const nothing = document.getElementById("nothing");
  const entries = [...document.querySelectorAll("[data-entry]")];
  const groups = [...document.querySelectorAll(".group")].filter((group) => group.querySelector("[data-entry]"));
  const names = ["q", "seam", "verdict"];

  const plural = (n) => `${n} ${n === 1 ? "paper" : "papers"}`;

  function accepts(entry, filters) {
    const words = filters.q.toLowerCase().split(/\s+/).filter(Boolean);
    return (
      (!filters.seam || entry.dataset.seam === filters.seam) &&
      (!filters.verdict || entry.dataset.verdict === filters.verdict) &&
      words.every((word) => entry.dataset.search.includes(word))
    );
  }

  function show(filters) {
    let shown = 0;
    for (const entry of entries) {
      entry.hidden = !accepts(entry, filters);
      shown += entry.hidden ? 0 : 1;
    }
    for (const group of groups) {
      const left = group.querySelectorAll("[data-entry]:not([hidden])").length;
      group.hidden = left === 0;
      group.querySelector("[data-tally]").textContent = String(left);
    }
    const filtered = names.some((name) => filters[name]);
    matches.textContent = filtered ? `${shown} of ${plural(entries.length)}` : plural(entries.length);
    reset.hidden = !filtered;
    nothing.hidden = shown > 0;
  }

  function read() {
    const data = new FormData(form);
    return Object.fromEntries(names.map((name) => [name, String(data.get(name) ?? "").trim()]));
  }

  function fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    form.elements.q.value = wanted.get("q") ?? "";
    form.elements.seam.value = wanted.get("seam") ?? "";
    // A name that no option has leaves the select empty; show all then.
    if (form.elements.seam.selectedIndex < 0) form.elements.seam.value = "";
    const radios = [...form.elements.verdict];
    (radios.find((radio) => radio.value === (wanted.get("verdict") ?? "")) ?? radios[0]).checked = true;
    show(read());
  }

  function changed() {
    const filters = read();
    const kept = new URLSearchParams(names.filter((name) => filters[name]).map((name) => [name, filters[name]]));
    history.replaceState(null, "", `#${kept}`);
    show(filters);
  }

  // Assistive software may choose an option without an input event.
  for (const event of ["input", "change"]) form.addEventListener(event, changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    document.querySelector("[data-entry]:not([hidden]) a")?.focus();
  });
  form.addEventListener("reset", () => {
    // The fields get their first values only after this event.
    setTimeout(() => {
      changed();
      form.elements.q.focus();
    });
  });
  window.addEventListener("hashchange", fromAddress);
  form.hidden = false;
  fromAddress();
})();
