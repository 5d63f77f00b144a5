// The owner's meetings, and what became of them. pocketfleet writes all of it; the owner reads it like any record of
// theirs. Search is one FTS5 table over the meetings, kept by triggers: rows share the number of the recording, which
// unlike an implicit rowid survives VACUUM. SQLite refuses to remove or retype a column that a trigger names, so a later
// migration that changes title, summary, transcript_text or recording_id drops the triggers first.
migrate((app) => {
  const ownerReads = {
    listRule: "@request.auth.id != ''",
    viewRule: "@request.auth.id != ''",
    createRule: null,
    updateRule: null,
    deleteRule: null,
  }
  const times = [
    { type: "autodate", name: "created", onCreate: true },
    { type: "autodate", name: "updated", onCreate: true, onUpdate: true },
  ]
  const recordingId = { type: "text", name: "recording_id", required: true, max: 20, pattern: "^[0-9]+$" }

  const meetings = new Collection({
    type: "base",
    name: "meetings",
    ...ownerReads,
    fields: [
      recordingId,
      { type: "text", name: "title", max: 2000, presentable: true },
      { type: "text", name: "url", max: 2000 },
      { type: "text", name: "share_url", max: 2000 },
      // When it appeared at the source; `created` is when it appeared here.
      { type: "date", name: "created_at" },
      { type: "date", name: "started_at" },
      { type: "date", name: "ended_at" },
      { type: "number", name: "duration_seconds", min: 0, onlyInt: true },
      { type: "text", name: "language", max: 50 },
      { type: "text", name: "source", required: true, max: 50 },
      { type: "json", name: "recorded_by", maxSize: 16384 },
      { type: "bool", name: "has_transcript" },
      // Hashes of what the source said last, so that what did not change is not written anew.
      { type: "text", name: "digest", max: 200, hidden: true },
      { type: "date", name: "synced_at" },
      ...times,
    ],
    indexes: [
      "CREATE UNIQUE INDEX idx_meetings_recording ON meetings (recording_id)",
      "CREATE INDEX idx_meetings_created_at ON meetings (created_at DESC, id DESC)",
    ],
  })
  app.save(meetings)
  // The large ones are added as columns behind all others: what does not ask for them does not read through them.
  const large = [
    { type: "json", name: "invitees", maxSize: 1048576 },
    { type: "text", name: "summary", max: 1000000 },
    { type: "json", name: "action_items", maxSize: 2097152 },
    { type: "text", name: "transcript_text", max: 20971520 },
    { type: "json", name: "transcript", maxSize: 20971520 },
  ]
  for (const field of large) {
    meetings.fields.add(new Field(field))
    app.save(meetings)
  }

  app.save(new Collection({
    type: "base",
    name: "artifacts",
    ...ownerReads,
    fields: [
      { type: "relation", name: "meeting", collectionId: meetings.id, maxSelect: 1, cascadeDelete: true },
      recordingId,
      { type: "text", name: "job", max: 100 },
      { type: "text", name: "destination", max: 100 },
      {
        type: "select",
        name: "kind",
        required: true,
        maxSelect: 1,
        values: ["video", "transcript_json", "transcript_txt", "transcript_vtt", "summary", "action_items", "metadata"],
      },
      { type: "text", name: "name", max: 500, presentable: true },
      { type: "text", name: "content_type", max: 200 },
      { type: "number", name: "size", min: 0, onlyInt: true },
      { type: "text", name: "sha256", max: 64 },
      // Where it is at the destination.
      { type: "text", name: "location", max: 5000 },
      // The small ones themselves.
      { type: "file", name: "file", maxSelect: 1, maxSize: 10485760, protected: true },
      { type: "date", name: "expires_at" },
      ...times,
    ],
    indexes: [
      "CREATE INDEX idx_artifacts_meeting ON artifacts (meeting)",
      "CREATE INDEX idx_artifacts_recording ON artifacts (recording_id)",
    ],
  }))

  app.save(new Collection({
    type: "base",
    name: "deliveries",
    ...ownerReads,
    fields: [
      recordingId,
      { type: "relation", name: "meeting", collectionId: meetings.id, maxSelect: 1, cascadeDelete: true },
      { type: "text", name: "destination", required: true, max: 100 },
      { type: "text", name: "job", max: 100 },
      {
        type: "select",
        name: "state",
        required: true,
        maxSelect: 1,
        values: ["delivering", "awaiting_upload", "delivered", "failed", "cancelled"],
      },
      { type: "text", name: "url", max: 5000 },
      { type: "text", name: "error", max: 5000 },
      { type: "number", name: "attempts", min: 0, onlyInt: true },
      { type: "date", name: "started_at" },
      { type: "date", name: "finished_at" },
      ...times,
    ],
    indexes: [
      "CREATE UNIQUE INDEX idx_deliveries_recording_destination ON deliveries (recording_id, destination)",
      "CREATE INDEX idx_deliveries_state ON deliveries (state)",
    ],
  }))

  app.save(new Collection({
    type: "base",
    name: "destinations",
    ...ownerReads,
    fields: [
      { type: "text", name: "name", required: true, max: 200, presentable: true },
      { type: "select", name: "kind", required: true, maxSelect: 1, values: ["folder", "s3", "http_put", "http_tus", "loom"] },
      // Secrets are in pocketfleet's vault, under this key.
      { type: "json", name: "settings", maxSize: 65536 },
      { type: "text", name: "vault_key", max: 100 },
      { type: "bool", name: "is_default" },
      ...times,
    ],
    indexes: ["CREATE UNIQUE INDEX idx_destinations_name ON destinations (name)"],
  }))

  // One row: how far the last run came, and how it ended.
  app.save(new Collection({
    type: "base",
    name: "sync_state",
    ...ownerReads,
    fields: [
      // fresh, syncing, failed; why it failed, and before when it is not tried again.
      { type: "text", name: "state", max: 50 },
      { type: "text", name: "error", max: 2000 },
      { type: "date", name: "retry_at" },
      { type: "date", name: "synced_at" },
      // The newest `created_at` of the last whole run.
      { type: "date", name: "newest" },
      // A run that is under way or was interrupted: what it does, since when it looks, where it goes on, and the newest it
      // has seen.
      { type: "text", name: "phase", max: 50, hidden: true },
      { type: "date", name: "since", hidden: true },
      { type: "text", name: "cursor", max: 5000, hidden: true },
      { type: "date", name: "seen", hidden: true },
      // The version of the key that this is of: with another key the list is read from its beginning.
      { type: "text", name: "synced_key", max: 200, hidden: true },
      // The key that the source refused, so that it is not tried again and again.
      { type: "text", name: "refused_key", max: 200, hidden: true },
      ...times,
    ],
  }))

  const run = (sql) => app.db().newQuery(sql).execute()
  run("CREATE VIRTUAL TABLE meetings_fts USING fts5(title, summary, transcript, tokenize = 'unicode61 remove_diacritics 2')")
  const add = `INSERT INTO meetings_fts (rowid, title, summary, transcript)
    VALUES (CAST(new.recording_id AS INTEGER), new.title, new.summary, new.transcript_text);`
  const drop = "DELETE FROM meetings_fts WHERE rowid = CAST(old.recording_id AS INTEGER);"
  run(`CREATE TRIGGER meetings_fts_insert AFTER INSERT ON meetings BEGIN ${add} END`)
  run(`CREATE TRIGGER meetings_fts_delete AFTER DELETE ON meetings BEGIN ${drop} END`)
  run(`CREATE TRIGGER meetings_fts_update AFTER UPDATE OF recording_id, title, summary, transcript_text ON meetings
    WHEN old.recording_id IS NOT new.recording_id OR old.title IS NOT new.title OR old.summary IS NOT new.summary
      OR old.transcript_text IS NOT new.transcript_text
    BEGIN ${drop} ${add} END`)
}, (app) => {
  for (const name of ["insert", "delete", "update"]) {
    app.db().newQuery(`DROP TRIGGER IF EXISTS meetings_fts_${name}`).execute()
  }
  app.db().newQuery("DROP TABLE IF EXISTS meetings_fts").execute()
  for (const name of ["sync_state", "destinations", "deliveries", "artifacts", "meetings"]) {
    app.delete(app.findCollectionByNameOrId(name))
  }
})
