// A field above the tables of the page "Options" that leaves only the rows in which what is typed stands.
document.addEventListener("DOMContentLoaded", () => {
  const first = document.querySelector("h2#sft");
  if (!first) return;
  const field = document.createElement("input");
  field.type = "search";
  field.className = "filter";
  field.placeholder = field.ariaLabel = "Filter the options: kl, lora, seconds…";
  first.before(field);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const heading of document.querySelectorAll("article h2")) {
      const table = heading.nextElementSibling;
      let left = 0;
      for (const row of table.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      heading.hidden = table.hidden = left === 0;
    }
  });
});
