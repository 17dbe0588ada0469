// Filters and sorts the responses of a report: it changes which of them are shown, and their order.
(() => {
  const form = document.getElementById('choose');
  const list = document.getElementById('samples');
  const rows = [...list.children];
  const { words, which, order } = form.elements;

  const number = (row, key) => row.dataset[key] === '' ? NaN : Number(row.dataset[key]);
  const chosen = {
    all: () => true,
    gained: (row) => number(row, 'gain') > 0,
    lost: (row) => number(row, 'gain') < 0,
    cut: (row) => row.dataset.cut === 'yes',
  };

  // What has no number stands last, whichever way the others are sorted.
  const by = (key, sign) => (a, b) => {
    const [x, y] = [number(a, key), number(b, key)];
    return Number.isNaN(x) - Number.isNaN(y) || (Number.isNaN(x) ? 0 : sign * (x - y));
  };

  function show() {
    const wanted = words.value.trim().toLowerCase();
    for (const row of rows)
      row.hidden = !(chosen[which.value](row) && row.textContent.toLowerCase().includes(wanted));
    const [key, direction] = order.value.split(' ');
    list.append(...(direction ? [...rows].sort(by(key, direction === 'up' ? 1 : -1)) : rows));
    form.querySelector('output').value = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  }

  form.addEventListener('input', show);
  form.addEventListener('submit', (event) => event.preventDefault());
  form.hidden = false;
  show();
})();
