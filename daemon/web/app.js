'use strict';
// The status page: asks the REST API every second and shows what changed. Text from the cluster is only ever set as text.
(() => {
  const $ = id => document.getElementById(id);
  const STORE = 'cohort-token';
  let token = sessionStorage.getItem(STORE) || '';
  let timer = 0, shown = {}, samples = {}, nodeNames = [];

  const fragment = new URLSearchParams(location.hash.slice(1)).get('token');
  if (fragment) {
    token = fragment;
    sessionStorage.setItem(STORE, token);
    history.replaceState(null, '', location.pathname); // not into history, bookmarks or screenshots
  }

  async function api(method, path, body) {
    const r = await fetch('/api/v1' + path, {
      method, cache: 'no-store', signal: AbortSignal.timeout(8000),
      headers: { Authorization: 'Bearer ' + token, ...(body ? { 'Content-Type': 'application/json' } : {}) },
      body: body ? JSON.stringify(body) : undefined,
    });
    const out = await r.json().catch(() => ({}));
    if (!r.ok) throw Object.assign(new Error(out.message || r.statusText), { status: r.status, hint: out.hint || '' });
    return out;
  }

  // ---- small DOM helpers ----
  function el(tag, props, ...children) {
    const e = Object.assign(document.createElement(tag), props || {});
    e.append(...children.filter(c => c !== null && c !== undefined && c !== ''));
    return e;
  }
  const td = (...c) => el('td', {}, ...c);
  const num = text => el('td', { className: 'num', textContent: text });
  const state = (text, cls, why) => td(el('span', { className: 'state ' + cls, textContent: text }), why ? el('small', { textContent: why }) : null);
  // Rows are rebuilt only when what they show changed: buttons keep focus, nothing flickers.
  function fill(id, items, row, emptyText) {
    const key = JSON.stringify(items);
    if (shown[id] === key) return;
    shown[id] = key;
    const body = $(id), cols = body.parentElement.tHead ? body.parentElement.tHead.rows[0].cells.length : 1;
    body.replaceChildren(...(items.length ? items.map(row) : [el('tr', {}, el('td', { className: 'empty', colSpan: cols, textContent: emptyText }))]));
  }

  const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  function bytes(n) {
    let i = 0;
    while (Math.abs(n) >= 1024 && i < UNITS.length - 1) { n /= 1024; i++; }
    return (i && n < 100 ? n.toFixed(1).replace(/\.0$/, '') : Math.round(n)) + ' ' + UNITS[i];
  }
  function duration(s) {
    if (!isFinite(s)) return '–';
    s = Math.ceil(s);
    return s < 60 ? s + ' s' : s < 3600 ? Math.floor(s / 60) + ' min ' + (s % 60) + ' s' : Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min';
  }
  const byName = (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true });

  // ---- rows ----
  const NODE_CLASS = { up: 'ok', joining: 'warn', maintenance: 'warn', leaving: 'warn', dead: 'bad' };
  const VM_CLASS = { running: 'ok', starting: 'warn', paused: 'warn', migrating: 'warn', stopped: 'off', failed: 'bad' };
  const HEALTH_CLASS = { healthy: 'ok', degraded: 'warn', resyncing: 'warn', parked: 'bad' };
  const TASK_CLASS = { running: 'warn', done: 'ok', failed: 'bad', canceled: 'off' };

  function nodeRow(n) {
    const used = el('progress', { max: n.memory_bytes || 1, value: n.memory_used_bytes });
    used.setAttribute('aria-label', 'memory given to VMs on ' + n.name);
    const roles = [n.voter ? 'database voter' : 'member', n.coordinator ? 'coordinator' : ''].filter(Boolean).join(', ');
    const why = n.state === 'dead' ? 'Its machines restart elsewhere; it catches up by itself when it returns.' : '';
    return el('tr', {}, td(el('strong', { textContent: n.name })), state(n.state, NODE_CLASS[n.state] || 'warn', why), td(n.addresses[0] || ''), td(roles),
      num(String(n.cpus)), td(used, ' ' + bytes(n.memory_used_bytes) + ' of ' + bytes(n.memory_bytes)), num(String(n.vms)),
      td(n.accel === 'kvm' ? 'KVM' : n.accel === 'tcg' ? 'emulation (TCG)' : n.accel, n.accel_reason ? el('small', { textContent: n.accel_reason }) : null));
  }

  function volumeRow(v) {
    return el('tr', {}, td(el('strong', { textContent: v.name })), state(v.health, HEALTH_CLASS[v.health] || 'warn', v.health_reason), num(bytes(v.size_bytes)),
      num(String(v.replicas)), td(v.vm ? 'vm ' + v.vm : v.purpose === 'image' ? 'image' : 'nobody'), td(v.owner || '–'));
  }

  function button(label, fn, disabled, what) {
    const b = el('button', { type: 'button', textContent: label, disabled });
    b.setAttribute('aria-label', label + ' ' + what);
    b.addEventListener('click', () => { b.disabled = true; fn(); });
    return b;
  }

  function vmRow(vm) {
    const on = vm.desired === 'running';
    const why = vm.message || (vm.migrate_to ? 'moving to ' + vm.migrate_to : on && !vm.host ? 'waits for a node with room' : !on && vm.host ? 'powering down' : '');
    return el('tr', {}, td(el('strong', { textContent: vm.name })), state(vm.state, VM_CLASS[vm.state] || 'warn', why), td(vm.host || '–'),
      num(String(vm.vcpus)), num(bytes(vm.memory_bytes)), td(vm.networks.map(n => n.ip + ' (' + n.network + ')').join(', ') || '–'),
      td(vm.disks.map(d => d.volume + ' ' + bytes(d.size_bytes) + (d.health === 'healthy' ? '' : ' – ' + d.health)).join(', ') || '–'),
      td(button('Start', () => act('start', vm.name), on || !!vm.host, vm.name),
        button('Stop', () => act('stop', vm.name), !on, vm.name),
        button('Migrate…', () => askMigrate(vm), !on || vm.state !== 'running' || !!vm.migrate_to, vm.name)));
  }

  function rateOf(t) { // per second: since the last samples, else since the start
    const s = samples[t.id] || (samples[t.id] = []);
    if (!s.length || s[s.length - 1].at !== t.updated_ms) s.push({ at: t.updated_ms, done: t.done });
    if (s.length > 10) s.shift();
    const first = s.length > 1 ? s[0] : { at: t.started_ms, done: 0 };
    return t.updated_ms > first.at ? (t.done - first.done) * 1000 / (t.updated_ms - first.at) : 0;
  }
  const amount = (n, unit) => unit === 'bytes' ? bytes(n) : unit === 'percent' ? Math.round(n) + ' %' : Math.round(n) + ' ' + unit;

  function taskRow(t) {
    const running = t.state === 'running', rate = running ? rateOf(t) : 0;
    const bar = el('progress', { max: t.total || 1, value: t.state === 'done' ? t.total || 1 : t.done });
    bar.setAttribute('aria-label', t.kind + ' ' + t.object);
    const why = t.message || (t.state === 'failed' ? 'See recent events.' : '');
    return el('tr', {}, td(el('strong', { textContent: t.kind }), ' ' + t.object), td(t.node), td(bar, ' ' + amount(t.done, t.unit) + ' of ' + amount(t.total, t.unit)),
      num(rate > 0 ? amount(rate, t.unit) + '/s' : '–'), num(running && rate > 0 ? duration((t.total - t.done) / rate) : '–'), state(t.state, TASK_CLASS[t.state] || 'warn', why));
  }

  const eventRow = e => el('tr', {}, td(new Date(e.time_ms).toLocaleTimeString()), td(e.object), state(e.message, { alarm: 'bad', warning: 'warn' }[e.severity] || 'off', ''));
  const alarmRow = a => el('li', { className: a.severity }, el('strong', { textContent: a.object + ': ' }), a.message, el('small', { textContent: 'Next: ' + a.next }));

  // ---- actions ----
  function say(text, bad) {
    const n = $('notice');
    n.textContent = text;
    n.classList.toggle('alarm', !!bad);
    n.hidden = false;
    clearTimeout(say.timer);
    say.timer = setTimeout(() => { n.hidden = true; }, bad ? 20000 : 6000);
  }
  async function act(verb, name, body) {
    try {
      await api('POST', '/vms/' + encodeURIComponent(name) + '/' + verb, body || {});
      say('Machine ' + name + ': ' + verb + ' asked for. Its state above follows.');
    } catch (e) {
      say('Machine ' + name + ' was left as it is: ' + e.message + (e.hint ? ' — ' + e.hint : ''), true);
    }
    shown.vms = '';
    refresh();
  }
  function askMigrate(vm) {
    const dialog = $('migrate');
    $('migrate-vm').textContent = vm.name;
    $('migrate-to').replaceChildren(...nodeNames.filter(n => n !== vm.host).map(n => el('option', { value: n, textContent: n })));
    dialog.returnValue = 'cancel';
    dialog.onclose = () => { // property, not attribute: allowed by the content policy
      shown.vms = '';
      if (dialog.returnValue === 'ok' && $('migrate-to').value) act('migrate', vm.name, { to: $('migrate-to').value });
    };
    dialog.showModal();
  }

  // ---- refresh ----
  function signIn(message) {
    clearTimeout(timer);
    $('main').hidden = true;
    $('sign-out').hidden = true;
    $('sign-in').hidden = false;
    $('sign-in-error').textContent = message || '';
    $('token').focus();
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      const [cluster, nodes, volumes, vms, tasks, events] = await Promise.all(
        ['/cluster', '/nodes', '/volumes', '/vms', '/tasks', '/events?limit=15'].map(p => api('GET', p)));
      nodeNames = nodes.filter(n => n.state === 'up').map(n => n.name).sort();
      $('cluster-name').textContent = cluster.name || '';
      $('summary').textContent = `${cluster.nodes.up} of ${cluster.nodes.total} nodes up · ${cluster.vms.running} of ${cluster.vms.total} machines running · ` +
        `${cluster.volumes.healthy} of ${Object.values(cluster.volumes).reduce((a, b) => a + b, 0)} volumes healthy` + (cluster.database.connected ? '' : ' · no database majority');
      $('alarms-section').hidden = !cluster.alarms.length;
      fill('alarms', cluster.alarms, alarmRow, '');
      fill('vms', vms.sort(byName), vmRow, 'No machine yet. Try: cohort vm create web1 --memory 512M --image NAME');
      fill('nodes', nodes.sort(byName), nodeRow, 'No node.');
      fill('volumes', volumes.filter(v => v.state !== 'deleting').sort(byName), volumeRow, 'No volume yet. Try: cohort volume create data1 --size 10G');
      const recent = tasks.filter(t => t.state === 'running').concat(
        tasks.filter(t => t.state !== 'running').sort((a, b) => b.updated_ms - a.updated_ms).slice(0, 5));
      fill('tasks', recent, taskRow, 'Nothing is running.');
      fill('events', events, eventRow, 'Nothing has happened yet.');
      $('lost').hidden = true;
      $('main').hidden = false;
      $('sign-out').hidden = false;
      $('sign-in').hidden = true;
    } catch (e) {
      if (e.status === 401) {
        sessionStorage.removeItem(STORE);
        token = '';
        signIn('The token was refused: ' + e.message + (e.hint ? ' — ' + e.hint : ''));
        return;
      }
      $('lost').textContent = e.status
        ? 'This node cannot show the cluster: ' + e.message + '. Running machines are not affected by that. Trying again every second.'
        : 'No answer from this node. Machines on other nodes go on; those on this one restart elsewhere if it is down. Trying again every second; another node\'s page shows the same cluster.';
      $('lost').hidden = false;
    }
    timer = setTimeout(refresh, 1000);
  }

  $('sign-in').addEventListener('submit', ev => {
    ev.preventDefault();
    token = $('token').value.trim();
    $('token').value = '';
    sessionStorage.setItem(STORE, token);
    refresh();
  });
  $('sign-out').addEventListener('click', () => {
    sessionStorage.removeItem(STORE);
    token = '';
    signIn('');
  });
  document.addEventListener('visibilitychange', () => { if (!document.hidden && token) refresh(); });
  if (token) refresh(); else signIn('');
})();
