// Two comforts of a study's page: copy the command, and bring one arm's curves to the fore.
"use strict";

(() => {
  for (const button of document.querySelectorAll("[data-copy]")) {
    const source = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        // Pages opened from disk may not write to the clipboard: select the text instead.
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1600);
    });
  }

  const curves = document.querySelector("[data-curves]");
  const buttons = [...(curves?.querySelectorAll("[data-arm]") ?? [])];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const alone = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) {
        const pressed = alone && other === button;
        other.setAttribute("aria-pressed", String(pressed));
        for (const line of curves.querySelectorAll(`.plot .arm-${other.dataset.arm}`)) {
          line.classList.toggle("dim", alone && !pressed);
        }
      }
    });
  }
})();
