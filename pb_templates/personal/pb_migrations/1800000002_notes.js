// A small, useful start. The whole instance is the owner's, so the rules only ask for a signed-in caller.
migrate((app) => {
  const signedIn = "@request.auth.id != ''"
  const rules = {
    listRule: signedIn,
    viewRule: signedIn,
    createRule: signedIn,
    updateRule: signedIn,
    deleteRule: signedIn,
  }
  const times = [
    { type: "autodate", name: "created", onCreate: true },
    { type: "autodate", name: "updated", onCreate: true, onUpdate: true },
  ]

  const notebooks = new Collection({
    type: "base",
    name: "notebooks",
    ...rules,
    fields: [
      { type: "text", name: "name", required: true, max: 200, presentable: true },
      ...times,
    ],
    indexes: ["CREATE INDEX idx_notebooks_name ON notebooks (name)"],
  })
  app.save(notebooks)

  const notes = new Collection({
    type: "base",
    name: "notes",
    ...rules,
    fields: [
      { type: "text", name: "title", required: true, max: 200, presentable: true },
      { type: "text", name: "body", max: 100000 },
      // An array of strings, such as ["work","2026"].
      { type: "json", name: "tags", maxSize: 2048 },
      { type: "bool", name: "pinned" },
      { type: "relation", name: "notebook", collectionId: notebooks.id, maxSelect: 1, cascadeDelete: false },
      // 2 GiB a file. The largest request body that PocketBase takes follows from this.
      { type: "file", name: "attachments", maxSelect: 5, maxSize: 2147483648 },
      ...times,
    ],
    indexes: [
      "CREATE INDEX idx_notes_updated ON notes (updated)",
      "CREATE INDEX idx_notes_notebook ON notes (notebook)",
    ],
  })
  app.save(notes)
}, (app) => {
  app.delete(app.findCollectionByNameOrId("notes"))
  app.delete(app.findCollectionByNameOrId("notebooks"))
})
