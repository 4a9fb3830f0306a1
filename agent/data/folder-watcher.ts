import type { Stats } from "node:fs";
import { basename, dirname, sep } from "node:path";
import { FSWatcher } from "chokidar";

/** What a {@link FolderWatcher} is told. */
export interface FolderWatcherOptions {
  /** Whether a folder is to be watched; absolute and real paths. */
  readonly watches: (folder: string) => boolean;
  /** A folder's watch begins: what came into it before was not told of. */
  readonly onWatched: (folder: string) => void;
}

/**
 * chokidar without its second looks: of a change in a folder only the raw event is passed on.
 *
 * chokidar itself answers a change by listing the folder again and looking at every file that lies
 * there, which in an inbox of some thousand pictures takes a processor of its own for as long as
 * pictures come. Here every folder is listed once, when its watch begins; whoever sees a folder
 * come or go later says so by {@link folderCame} and {@link folderWent}. Files are not watched, as
 * each would cost a watch of its own, and links are not followed.
 */
export class FolderWatcher extends FSWatcher {
  readonly #onWatched: (folder: string) => void;
  readonly #listed = new Set<string>();
  /** Which folder of that name each is, as {@link folderIdentity} tells it. */
  readonly #identities: Map<string, string>;

  constructor({ watches, onWatched }: FolderWatcherOptions) {
    const identities = new Map<string, string>();
    super({
      ignoreInitial: true,
      followSymlinks: false,
      ignored: (path: string, stats?: Stats) => {
        if (stats === undefined) return false;
        if (!stats.isDirectory() || !watches(path)) return true;
        identities.set(path, folderIdentity(stats));
        return false;
      },
    });
    this.#identities = identities;
    this.#onWatched = onWatched;
  }

  /** Lets every folder be listed once; chokidar calls it before it lists one. */
  override _throttle(...[action, path, timeoutMs]: Parameters<FSWatcher["_throttle"]>) {
    if (action !== "readdir") return super._throttle(action, path, timeoutMs);
    if (this.#listed.has(path)) return false;
    this.#listed.add(path);
    const listing = super._throttle(action, path, timeoutMs);
    if (listing === false) return false;
    const clear = () => {
      this.#onWatched(path);
      return listing.clear();
    };
    return { ...listing, clear };
  }

  /** Begins to watch a folder below a watched one, and all below it, unless that is done. */
  folderCame(folder: string, stats: Stats): void {
    const identity = this.#identities.get(folder);
    if (this.#listed.has(folder) && identity === folderIdentity(stats)) return;
    this.folderWent(folder);
    this.add(folder);
  }

  /** Ends the watch of a folder that is gone, and of all that were below it; others do no harm. */
  folderWent(folder: string): void {
    if (!this.#listed.has(folder)) return;
    for (const watched of [...this.#listed]) {
      if (watched !== folder && !watched.startsWith(folder + sep)) continue;
      this.#listed.delete(watched);
      this.#identities.delete(watched);
    }
    // What chokidar does where a listing lacks a folder; `unwatch` would ignore it from then on.
    this._remove(dirname(folder), basename(folder), true);
  }
}

/** Tells a folder from one that was made in its place: inodes are used again, times are not. */
export function folderIdentity({ dev, ino, birthtimeMs }: Stats): string {
  return `${dev}:${ino}:${birthtimeMs}`;
}
