// The page's own script: the time-layer plane, one arm's curves, the search, the table.
// Data are in #data (see report/explore.py); charts are Apache ECharts'. Names are only ever set
// as text, or escaped.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const escape = echarts.format.encodeHTML;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const numbers = (text) =>
    Float64Array.from(new Int16Array(bytes(text).buffer), (v) => v === data.none ? NaN : v * data.unit);

  const { models, tasks, poolings, arms, last_layers, best, search } = data;
  const A = arms.name.length, T = tasks.length;
  const planeTA = numbers(data.plane), sd = numbers(data.sd), bits = bytes(data.measured);
  const measured = (t, a) => (bits[(t * A + a) >> 3] >> ((t * A + a) & 7)) & 1;
  const shown = (value, digits = 4) => Number.isFinite(value) ? value.toFixed(digits) : "-";

  // pulls[a]: positions in the search of the arm's pulls; sources: by cell, where a score is from
  // that the search did not have to pull.
  const pulls = Array.from({ length: A }, () => []), sources = new Map();
  const reasonOf = (i) => search.reasons[i - (search.arm.length - search.reasons.length)] || "";
  if (search) search.arm.forEach((a, i) => {
    if (search.kinds[search.kind[i]] === "imported") sources.set(search.task[i] * A + a, reasonOf(i));
    else pulls[a].push(i);
  });

  const categories = [...new Set(tasks.map((t) => t.category).filter(Boolean))].sort();
  const state = { model: best === null ? 0 : arms.model[best], pooling: best === null ? 0 : arms.pooling[best],
    what: "mean", scale: "raw", until: search ? search.arm.length : 0, pinned: best === null ? 0 : best };

  // What is shown of an arm: the mean over the chosen tasks, or its mean rank among all arms.
  function chosenTasks() {
    if (state.what === "mean") return tasks.map((_, t) => t);
    if (state.what.startsWith("c:")) {
      return tasks.flatMap((task, t) => task.category === state.what.slice(2) ? [t] : []);
    }
    return [Number(state.what.slice(2))];
  }
  function ranks(t) {
    const there = [...Array(A).keys()].filter((a) => Number.isFinite(planeTA[t * A + a]));
    there.sort((a, b) => planeTA[t * A + b] - planeTA[t * A + a]);
    const out = new Float64Array(A).fill(NaN);
    for (let i = 0; i < there.length;) {  // arms with one score share the mean of their ranks
      let end = i;
      while (end < there.length && planeTA[t * A + there[end]] === planeTA[t * A + there[i]]) end++;
      for (let j = i; j < end; j++) out[there[j]] = (i + 1 + end) / 2;
      i = end;
    }
    return out;
  }
  let values = new Float64Array(A), chosen = [];
  function compute() {
    chosen = chosenTasks();
    values = new Float64Array(A);
    for (const t of chosen) {
      const column = state.scale === "rank" ? ranks(t) : planeTA.subarray(t * A, (t + 1) * A);
      for (let a = 0; a < A; a++) values[a] += column[a] / chosen.length;
    }
  }
  const measuredTasks = (a) => chosen.reduce((n, t) => n + measured(t, a), 0);
  const digits = () => state.scale === "rank" ? 1 : 4;
  const label = () => (state.scale === "rank" ? "mean rank among all arms" : "main score") +
    (state.what === "mean" ? `, mean over ${T} tasks` : state.what.startsWith("c:")
      ? `, mean over ${chosen.length} tasks (${state.what.slice(2)})` : `, ${tasks[chosen[0]].name}`);

  function inWords(a) {
    const model = models[arms.model[a]], checkpoint = model.checkpoints[arms.checkpoint[a]];
    return `${model.short} ${checkpoint.name}, layer ${arms.layer[a]}` +
      (poolings.length > 1 ? `, ${poolings[arms.pooling[a]]} pooling` : "");
  }
  function facts(a) {
    const n = measuredTasks(a), own = pulls[a].filter((i) => i < state.until);
    const out = [`${label()}: ${shown(values[a], digits())}`];
    if (state.what === "mean" && state.scale === "raw" && Number.isFinite(sd[a]) && sd[a] > 0) {
      out.push(`95 % between ${shown(values[a] - 1.96 * sd[a])} and ${shown(values[a] + 1.96 * sd[a])}`);
    }
    out.push(n === chosen.length ? "measured" : n === 0 ? "predicted, nothing measured"
      : `measured on ${n} of ${chosen.length} tasks, the rest predicted`);
    const given = chosen.filter((t) => sources.has(t * A + a));
    if (given.length) {
      const from = sources.get(given[0] * A + a);
      out.push(`${given.length} of ${n} measured tasks imported, not pulled here` + (from ? `: ${from}` : "") +
        (given.length > 1 ? ", and others" : ""));
    }
    if (search) {
      const last = own.length ? reasonOf(own[own.length - 1]) : "";
      out.push(`${own.length} pulls` + (last ? `, the last because: ${last}` : ""));
    }
    out.push(models[arms.model[a]].checkpoints[arms.checkpoint[a]].state);
    return out;
  }

  // Colours: viridis, which people with any colour vision can read, in light and in dark.
  const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779",
    "#6dcd59", "#b4de2c", "#fde725"];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const charts = {};
  for (const id of ["plane", "over-time", "over-depth", "over-tasks", "search-chart"]) {
    if ($(id)) charts[id] = echarts.init($(id), null, { renderer: "svg" });
  }
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches || A > 2000;
  const base = () => ({
    animation: !still, textStyle: { fontFamily: "inherit", color: css("--soft") }, aria: { enabled: true },
    tooltip: { confine: true, backgroundColor: css("--panel"), borderColor: css("--line"),
      textStyle: { color: css("--text") }, extraCssText: "max-width:22rem;white-space:normal" },
  });
  const axis = (more) => ({ nameTextStyle: { color: css("--soft") }, axisLabel: { color: css("--soft") },
    axisLine: { lineStyle: { color: css("--line") } }, splitLine: { lineStyle: { color: css("--line") } }, ...more });

  const here = () => [...Array(A).keys()].filter(
    (a) => arms.model[a] === state.model && arms.pooling[a] === state.pooling);

  function drawPlane() {
    const model = models[state.model], mine = here();
    const layers = model.layers, row = new Map(layers.map((n, i) => [n, i]));
    const cell = (a) => [arms.checkpoint[a], row.get(arms.layer[a])];
    const finite = Array.from(values).filter(Number.isFinite);
    const low = finite.reduce((x, y) => Math.min(x, y), Infinity), high = finite.reduce((x, y) => Math.max(x, y), -Infinity);
    const sparse = mine.filter((a) => measuredTasks(a) > 0);
    charts.plane.setOption({ ...base(),
      grid: { left: 48, right: 12, top: 30, bottom: 84 },
      xAxis: axis({ type: "category", data: model.checkpoints.map((c) => c.short), name: "checkpoint",
        nameLocation: "middle", nameGap: 24, splitLine: { show: false } }),
      yAxis: axis({ type: "category", data: layers.map(String), name: "layer", splitLine: { show: false } }),
      visualMap: { min: finite.length ? low : 0, max: finite.length ? high : 1, calculable: true, precision: digits(),
        orient: "horizontal", left: "center", bottom: 0, itemHeight: 160, itemWidth: 12, seriesIndex: 0,
        textStyle: { color: css("--soft") },
        inRange: { color: state.scale === "rank" ? [...VIRIDIS].reverse() : VIRIDIS } },
      tooltip: { ...base().tooltip, trigger: "item", formatter: (p) => {
        const a = p.data.arm;
        return `<b>${escape(inWords(a))}</b><br>${facts(a).map(escape).join("<br>")}`;
      } },
      series: [
        { type: "heatmap", data: mine.filter((a) => Number.isFinite(values[a])).map((a) => ({
          value: [...cell(a), values[a]], arm: a, itemStyle: { opacity: measuredTasks(a) === chosen.length ? 1 : 0.72 } })),
          emphasis: { itemStyle: { borderColor: css("--text"), borderWidth: 2 } }, progressive: 0 },
        // A dot: every chosen task is measured; a ring: some of them are.
        { type: "scatter", symbolSize: 5, silent: true, data: sparse.map((a) => ({ value: cell(a), arm: a,
          itemStyle: measuredTasks(a) === chosen.length ? { color: "#fff", borderColor: "#000", borderWidth: 0.5 }
            : { color: "transparent", borderColor: "#fff", borderWidth: 1.2 } })) },
        { type: "scatter", symbol: "rect", silent: true, z: 5,
          symbolSize: [12, 12], data: [
            ...(best !== null && mine.includes(best) ? [{ value: cell(best), arm: best, itemStyle: { color: "transparent",
              borderColor: css("--mark"), borderWidth: 3 } }] : []),
            ...(mine.includes(state.pinned) ? [{ value: cell(state.pinned), arm: state.pinned, symbolSize: [17, 17], itemStyle: {
              color: "transparent", borderColor: css("--text"), borderWidth: 2 } }] : [])] },
      ],
    }, true);
    $("plane").setAttribute("aria-label", `${model.short}: ${label()}, ${layers.length} layers by ` +
      `${model.checkpoints.length} checkpoints, from ${shown(low, digits())} to ${shown(high, digits())}. ` +
      "Arrow keys move the pinned arm.");
  }

  function line(id, name, labels, places, mark) {
    const other = last_layers[arms.model[state.pinned]];
    charts[id].setOption({ ...base(), title: { text: name, textStyle: { fontSize: 13, color: css("--text") } },
      grid: { left: 52, right: 14, top: 36, bottom: 30 },
      tooltip: { ...base().tooltip, trigger: "axis", formatter: (ps) => {
        const a = places[ps[0].dataIndex];
        return `<b>${escape(inWords(a))}</b><br>${facts(a).map(escape).join("<br>")}`;
      } },
      xAxis: axis({ type: "category", data: labels }),
      yAxis: axis({ type: "value", scale: true, inverse: state.scale === "rank" }),
      series: [{ type: "line", showSymbol: places.length < 60, symbolSize: (v, p) => p.dataIndex === mark ? 13 : 6,
        lineStyle: { color: css("--search") }, itemStyle: { color: css("--search") }, connectNulls: false,
        data: places.map((a) => Number.isFinite(values[a]) ? values[a] : null),
        markLine: Number.isFinite(values[other]) ? { silent: true, symbol: "none", data: [{ yAxis: values[other] }],
          lineStyle: { color: css("--mark"), type: "dashed" }, label: { formatter: "last layer", position: "insideEndTop", color: css("--mark") } } : undefined }],
    }, true);
  }

  function drawPinned() {
    const p = state.pinned, model = models[arms.model[p]];
    const alike = [...Array(A).keys()].filter((a) => arms.model[a] === arms.model[p] && arms.pooling[a] === arms.pooling[p]);
    const time = alike.filter((a) => arms.layer[a] === arms.layer[p]).sort((a, b) => arms.checkpoint[a] - arms.checkpoint[b]);
    const depth = alike.filter((a) => arms.checkpoint[a] === arms.checkpoint[p]).sort((a, b) => arms.layer[a] - arms.layer[b]);
    line("over-time", `Layer ${arms.layer[p]} over training`, time.map((a) => model.checkpoints[arms.checkpoint[a]].short), time, time.indexOf(p));
    line("over-depth", `${model.checkpoints[arms.checkpoint[p]].name} over depth`, depth.map((a) => String(arms.layer[a])), depth, depth.indexOf(p));
    const other = last_layers[arms.model[p]];
    const order = tasks.map((_, t) => t).sort((s, t) => planeTA[t * A + p] - planeTA[s * A + p]).reverse();
    const bar = (a, name, colour) => ({ name, type: "bar", itemStyle: { color: colour }, barGap: "0%",
      data: order.map((t) => Number.isFinite(planeTA[t * A + a]) ? { value: planeTA[t * A + a], itemStyle: { opacity: measured(t, a) ? 1 : 0.45 } } : null) });
    $("over-tasks").style.height = `${Math.max(220, 70 + T * 20)}px`;
    charts["over-tasks"].resize();
    charts["over-tasks"].setOption({ ...base(), title: { text: "Its tasks (pale: predicted)", textStyle: { fontSize: 13, color: css("--text") } },
      legend: { top: 0, right: 0, textStyle: { color: css("--soft") } }, grid: { left: 8, right: 16, top: 36, bottom: 24, containLabel: true },
      tooltip: { ...base().tooltip, trigger: "axis", valueFormatter: (v) => shown(v) },
      xAxis: axis({ type: "value" }), yAxis: axis({ type: "category", data: order.map((t) => tasks[t].name),
        axisLabel: { color: css("--soft"), width: 150, overflow: "truncate" } }),
      series: [bar(p, "pinned", css("--search")), ...(other === p ? [] : [bar(other, "last layer", css("--reference"))])],
    }, true);
    $("pinned").textContent = `Pinned: ${inWords(p)}. ${facts(p).join(". ")}.`;
  }

  function drawSearch() {
    if (!search || !charts["search-chart"]) return;
    const colour = { reference: css("--reference"), search: css("--search"), check: css("--check"), imported: css("--imported") };
    charts["search-chart"].setOption({ ...base(), grid: { left: 52, right: 14, top: 30, bottom: 40 },
      legend: { textStyle: { color: css("--soft") } },
      tooltip: { ...base().tooltip, trigger: "item", formatter: (p) => {
        const i = p.value[0] - 1, a = search.arm[i];
        return `<b>pull ${i + 1}: ${escape(inWords(a))}</b><br>${escape(tasks[search.task[i]].name)}: ` +
          `${shown(search.score[i] * data.unit)}<br>${escape(reasonOf(i))}`;
      } },
      xAxis: axis({ type: "value", name: "pull", nameLocation: "middle", nameGap: 24, min: 1, max: Math.max(2, search.arm.length) }),
      yAxis: axis({ type: "value", name: "main score", scale: true }),
      series: search.kinds.map((kind, k) => ({ name: kind, type: "scatter", symbolSize: 7, large: search.arm.length > 3000,
        itemStyle: { color: colour[kind] || css("--text"), opacity: 0.75 },
        data: search.kind.flatMap((of, i) => of === k && i < state.until ? [[i + 1, search.score[i] * data.unit]] : []) })),
    }, true);
    $("pull-text").textContent = `after ${state.until} of ${search.arm.length} pulls`;
  }

  // The table: sort by a click on its head, filter by words, copy what is shown.
  const columns = [
    ["model", (a) => models[arms.model[a]].short], ["checkpoint", (a) => models[arms.model[a]].checkpoints[arms.checkpoint[a]].name],
    ["layer", (a) => arms.layer[a]], ...(poolings.length > 1 ? [["pooling", (a) => poolings[arms.pooling[a]]]] : []),
    ["score", (a) => values[a]], ["measured", (a) => measuredTasks(a)], ["pulls", (a) => pulls[a].filter((i) => i < state.until).length],
  ];
  const sorting = { column: columns.findIndex((c) => c[0] === "score"), down: true };
  const MOST = 200;
  const text = (column, value) => column === "score" ? shown(value, digits()) : String(value);
  function rows() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const get = columns[sorting.column][1];
    const found = [...Array(A).keys()].filter((a) => {
      const line = columns.slice(0, 4).map(([, of]) => of(a)).join(" ").toLowerCase() + ` layer${arms.layer[a]}`;
      return words.every((w) => line.includes(w));
    });
    const sign = sorting.down ? -1 : 1;
    return found.sort((a, b) => {
      const x = get(a), y = get(b);
      if (typeof x === "string") return sign * x.localeCompare(y, undefined, { numeric: true });
      if (!Number.isFinite(x) || !Number.isFinite(y)) return Number.isFinite(y) - Number.isFinite(x);  // gaps last
      return sign * (x - y);
    });
  }
  function drawTable() {
    const found = rows(), body = $("arms-body");
    const all = found.slice(0, MOST).map((a) => {
      const tr = document.createElement("tr");
      if (a === best) tr.className = "is-best";
      if (last_layers.includes(a)) tr.classList.add("last-layer");
      columns.forEach(([name, of], i) => {
        const td = document.createElement("td");
        const value = text(name, of(a));
        if (i === 0) {
          const pin = document.createElement("button");
          pin.type = "button"; pin.textContent = value; pin.title = "pin this arm";
          pin.addEventListener("click", () => pin_arm(a));
          td.append(pin); td.className = "name";
        } else {
          td.textContent = value;
          if (typeof of(a) === "string") td.className = "name";
        }
        tr.append(td);
      });
      return tr;
    });
    body.replaceChildren(...all);
    $("arms-count").textContent = found.length > MOST ? `the first ${MOST} of ${found.length} arms` : `${found.length} arms`;
    document.querySelectorAll("#arms-head th").forEach((th, i) =>
      th.setAttribute("aria-sort", i !== sorting.column ? "none" : sorting.down ? "descending" : "ascending"));
  }
  const quoted = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  function csv() {
    const lines = rows().map((a) => columns.map(([name, of]) => quoted(text(name, of(a)).replace(/^-$/, ""))).join(","));
    return [columns.map((c) => c[0]).join(","), ...lines].join("\n") + "\n";
  }

  function pin_arm(a) {
    state.pinned = a;
    state.model = arms.model[a];
    state.pooling = arms.pooling[a];
    $("model").value = state.model;
    if ($("pooling")) $("pooling").value = state.pooling;
    drawPlane();
    drawPinned();
  }
  function drawAll() { compute(); drawPlane(); drawPinned(); drawSearch(); drawTable(); }

  // Controls
  function option(select, value, name, group) {
    const one = document.createElement("option");
    one.value = value; one.textContent = name;
    (group || select).append(one);
  }
  models.forEach((m, i) => option($("model"), i, m.short));
  poolings.forEach((p, i) => option($("pooling"), i, p));
  $("pooling").parentElement.hidden = poolings.length < 2;
  option($("what"), "mean", `mean over ${T} tasks`);
  for (const [name, items] of [["categories", categories.map((c) => [`c:${c}`, c])], ["tasks", tasks.map((t, i) => [`t:${i}`, t.name])]]) {
    if (!items.length) continue;
    const group = document.createElement("optgroup");
    group.label = name;
    items.forEach(([value, word]) => option(null, value, word, group));
    $("what").append(group);
  }
  $("model").value = state.model;
  $("pooling").value = state.pooling;
  const on = (id, event, act) => $(id) && $(id).addEventListener(event, act);
  on("model", "change", (e) => { state.model = Number(e.target.value); drawPlane(); });
  on("pooling", "change", (e) => { state.pooling = Number(e.target.value); drawPlane(); });
  on("what", "change", (e) => { state.what = e.target.value; drawAll(); });
  on("scale", "change", (e) => { state.scale = e.target.value; drawAll(); });
  on("filter", "input", drawTable);
  on("copy", "click", async () => {
    let done = true;
    try { await navigator.clipboard.writeText(csv()); } catch { done = false; }
    if (!done) {  // a page from a file may not reach the clipboard: hand the text over to be copied
      $("csv").hidden = false; $("csv").value = csv(); $("csv").select();
      done = document.execCommand("copy");
    }
    $("copied").textContent = done ? "copied" : "select the text below and copy it";
  });
  columns.forEach(([name], i) => {
    const th = document.createElement("th"), button = document.createElement("button");
    th.scope = "col"; button.type = "button"; button.textContent = name;
    button.addEventListener("click", () => {
      sorting.down = sorting.column === i ? !sorting.down : !["model", "checkpoint", "pooling"].includes(name);
      sorting.column = i;
      drawTable();
    });
    th.append(button);
    $("arms-head").append(th);
  });
  charts.plane.on("click", (p) => { if (p.data && p.data.arm !== undefined) pin_arm(p.data.arm); });
  $("plane").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const p = state.pinned, layers = models[arms.model[p]].layers;
    const column = arms.checkpoint[p] + step[0], layer = layers[layers.indexOf(arms.layer[p]) + step[1]];
    const next = here().find((a) => arms.checkpoint[a] === column && arms.layer[a] === layer);
    if (next !== undefined) pin_arm(next);
  });
  if (search) {
    $("until").max = state.until; $("until").value = state.until;
    on("until", "input", (e) => { state.until = Number(e.target.value); drawSearch(); drawPlane(); drawTable(); $("pinned").textContent = `Pinned: ${inWords(state.pinned)}. ${facts(state.pinned).join(". ")}.`; });
    let playing = null;
    on("play", "click", () => {
      if (playing) { clearInterval(playing); playing = null; $("play").textContent = "play"; return; }
      $("play").textContent = "stop";
      if (state.until >= search.arm.length) state.until = 0;
      const step = Math.max(1, Math.round(search.arm.length / 150));
      playing = setInterval(() => {
        state.until = Math.min(search.arm.length, state.until + step);
        $("until").value = state.until;
        drawSearch();
        if (state.until >= search.arm.length) { clearInterval(playing); playing = null; $("play").textContent = "play"; }
      }, 60);
    });
  }
  on("theme", "click", () => {
    const dark = css("color-scheme") === "dark" || (css("color-scheme") !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => Object.values(charts).forEach((c) => c.resize()));
  addEventListener("beforeprint", () => Object.values(charts).forEach((c) => c.resize()));
  document.documentElement.classList.add("scripted");
  Object.values(charts).forEach((c) => c.resize());
  drawAll();
})();
