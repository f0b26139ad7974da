// What is made ready before it is asked for: a reader who goes through the images waits for none of them.

/** {entry, run} of the image that many further on; the entry is null if it cannot be read, which is said when it is chosen. */
async function neighbor(step) {
  const [target] = data.images[(state.image + step + data.images.length) % data.images.length].targets;
  return {entry: await load(target.entry).catch(() => null), run: data.runs[target.run]};
}

/** After the frame that shows the chosen image: what will be seen of the one that the same key would show next. */
async function ahead(mine) {
  await aMoment(20);
  if (mine !== drawing) return;
  const {entry, run} = await neighbor(state.step);
  if (!entry || mine !== drawing) return;
  await Promise.allSettled([photos(entry), paintSeen(entry)]);
  if (mine === drawing && inWindow(pick("apart-view"))) await prepareApart(run, entry);
}

/** When nothing else is done: the images after and before the chosen one, drawn but not shown. */
async function prepare(mine) {
  await aMoment(100);
  for (const step of [state.step, -state.step]) {
    if (mine !== drawing) return;
    const {entry, run} = await neighbor(step);
    if (!entry) continue;
    await photos(entry);
    await prepareApart(run, entry);
    for (const model of modelsShown(entry)) for (const map of mapsShown(model)) {
      await aMoment();
      if (mine !== drawing) return;
      await paintMap(entry, model, map);
    }
  }
}
