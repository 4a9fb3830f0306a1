/** What is needed of a picture to say which burst it belongs to. */
export interface BurstMember {
  /** Unique among the pictures: its hash or path. */
  id: string;
  /** Bursts never cross folders (or cameras): any text that tells them apart. */
  folder: string;
  /** Camera-local without a zone, or with an offset or `Z`; null where unknown. */
  capturedAt: string | null;
  /** Sequence that the camera or label file gives. */
  sequence?: string | null;
  /** Burst that was assigned earlier; it is never changed. */
  burst?: string | null;
}

interface Timed {
  member: BurstMember;
  ms: number;
}

/**
 * Assigns every picture to a burst. In this order:
 * 1. A burst that was assigned earlier stays: what was held out once is held out for ever.
 * 2. A `sequence` is the burst.
 * 3. Without a capture time a picture is a burst of its own.
 * 4. Else pictures of one folder belong together while each is at most `gapSeconds` after the
 *    one before it. Such a chain takes the burst that was assigned earlier in it; where there
 *    are several (a late picture closed the gap between two bursts), each new picture takes the
 *    one of the nearest earlier-assigned picture in time, the older where two are equally near;
 *    where there is none, the chain is named by folder and its first time.
 *
 * The order of the pictures does not matter. Called again with what it returned, and more
 * pictures, it changes nothing that was assigned. For one new picture the pictures of its folder
 * within `gapSeconds` of it are enough. Times without a zone and times with one are not compared.
 *
 * @param gapSeconds at least 0.
 * @returns `id` → burst, for every picture.
 */
export function assignBursts(
  pictures: readonly BurstMember[],
  gapSeconds: number,
): Map<string, string> {
  const bursts = new Map<string, string>();
  const folders = new Map<string, Timed[]>();
  for (const member of pictures) {
    const ms = timeMs(member.capturedAt);
    if (member.burst) bursts.set(member.id, member.burst);
    else if (member.sequence) bursts.set(member.id, member.sequence);
    else if (ms === undefined) bursts.set(member.id, member.id);
    if (ms === undefined || member.sequence) continue;
    const key = `${hasZone(member.capturedAt) ? "zoned" : "local"} ${member.folder}`;
    const folder = folders.get(key);
    if (folder) folder.push({ member, ms });
    else folders.set(key, [{ member, ms }]);
  }
  for (const members of folders.values()) {
    for (const chain of chains(members, gapSeconds * 1000)) nameChain(chain, bursts);
  }
  return bursts;
}

function chains(members: Timed[], gapMs: number): Timed[][] {
  members.sort((a, b) => a.ms - b.ms || (a.member.id < b.member.id ? -1 : 1));
  const result: Timed[][] = [];
  let last: Timed | undefined;
  for (const timed of members) {
    if (last && timed.ms - last.ms <= gapMs) result.at(-1)?.push(timed);
    else result.push([timed]);
    last = timed;
  }
  return result;
}

/** Gives the unassigned pictures of a chain, sorted by time, their burst. */
function nameChain(chain: readonly Timed[], bursts: Map<string, string>): void {
  const first = chain[0];
  if (!first) return;
  const fresh = `${first.member.folder}@${first.member.capturedAt}`;
  const assigned = chain.filter(({ member }) => bursts.has(member.id));
  let next = 0;
  for (const { member, ms } of chain) {
    if (bursts.has(member.id)) continue;
    while (next < assigned.length && assigned[next]!.ms <= ms) next += 1;
    const before = assigned[next - 1];
    const after = assigned[next];
    const nearest = before && after ? (after.ms - ms < ms - before.ms ? after : before) : before;
    const burst = bursts.get((nearest ?? after)?.member.id ?? "");
    bursts.set(member.id, burst ?? fresh);
  }
}

function hasZone(time: string | null): boolean {
  return time !== null && /(?:Z|[+-]\d{2}:\d{2})$/.test(time);
}

/** A local time counts as UTC: only differences between local times are used. */
function timeMs(time: string | null): number | undefined {
  if (time === null) return undefined;
  const ms = Date.parse(hasZone(time) ? time : `${time}Z`);
  return Number.isNaN(ms) ? undefined : ms;
}
