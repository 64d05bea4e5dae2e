"use strict";
(() => {
  const form = document.querySelector(".filters");
  const rows = [...document.querySelectorAll("article.query")];
  const search = form.querySelector("[type=search]");
  const pictured = form.querySelector("[name=pictured]");
  const none = document.querySelector(".none");

  function apply() {
    const kind = form.querySelector("[name=kind]:checked").value;
    const words = search.value.toLowerCase().trim();
    let shown = 0;
    for (const row of rows) {
      const fits = Boolean(
        (kind === "all" || row.dataset.kinds.split(" ").includes(kind)) &&
        row.dataset.name.includes(words) &&
        // Who searches for a name wants that query, pictures or not.
        (!pictured?.checked || words || "pictured" in row.dataset)
      );
      row.hidden = !fits;
      shown += fits;
    }
    none.hidden = shown > 0;
    form.querySelector("output").value = `${shown} of ${rows.length} shown`;
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
