// What a team starts with. Guests read; members write, each under their own name; owners and admins clean up.
migrate((app) => {
  const reads = "@request.auth.member_role != ''"
  const writes = "@request.auth.member_role != '' && @request.auth.member_role != 'guest'"
  const manages = "@request.auth.member_role = 'owner' || @request.auth.member_role = 'admin'"
  const rules = {
    listRule: reads,
    viewRule: reads,
    createRule: `${writes} && @request.body.author = @request.auth.id`,
    // Whoever wrote it first stays the author.
    updateRule: `${writes} && (@request.body.author:isset = false || @request.body.author = author)`,
    deleteRule: manages,
  }
  // No cascade: what somebody wrote outlives their membership.
  const author = {
    type: "relation", name: "author", collectionId: "_pb_users_auth_", maxSelect: 1, cascadeDelete: false, required: true,
  }
  const times = [
    { type: "autodate", name: "created", onCreate: true },
    { type: "autodate", name: "updated", onCreate: true, onUpdate: true },
  ]

  app.save(new Collection({
    type: "base",
    name: "notes",
    ...rules,
    fields: [
      { type: "text", name: "title", required: true, max: 200, presentable: true },
      { type: "text", name: "body", max: 100000 },
      // An array of strings, such as ["work","2026"].
      { type: "json", name: "tags", maxSize: 2048 },
      { type: "file", name: "attachments", maxSelect: 5, maxSize: 2147483648 },
      author,
      ...times,
    ],
    indexes: ["CREATE INDEX idx_notes_updated ON notes (updated)"],
  }))

  app.save(new Collection({
    type: "base",
    name: "tasks",
    ...rules,
    fields: [
      { type: "text", name: "title", required: true, max: 200, presentable: true },
      { type: "text", name: "body", max: 100000 },
      { type: "select", name: "status", maxSelect: 1, values: ["open", "doing", "done"] },
      { type: "relation", name: "assignee", collectionId: "_pb_users_auth_", maxSelect: 1, cascadeDelete: false },
      { type: "date", name: "due" },
      author,
      ...times,
    ],
    indexes: [
      "CREATE INDEX idx_tasks_status ON tasks (status, updated)",
      "CREATE INDEX idx_tasks_assignee ON tasks (assignee)",
    ],
  }))
}, (app) => {
  app.delete(app.findCollectionByNameOrId("tasks"))
  app.delete(app.findCollectionByNameOrId("notes"))
})
