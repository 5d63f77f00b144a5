// Everybody reads what is published; whoever signed in writes, under their own name, and sees their own drafts.
migrate((app) => {
  const own = "@request.auth.id != '' && author = @request.auth.id"
  const reads = `published = true || (${own})`
  app.save(new Collection({
    type: "base",
    name: "posts",
    listRule: reads,
    viewRule: reads,
    createRule: "@request.auth.id != '' && @request.body.author = @request.auth.id",
    updateRule: `${own} && (@request.body.author:isset = false || @request.body.author = author)`,
    deleteRule: own,
    fields: [
      { type: "text", name: "title", required: true, max: 200, presentable: true },
      { type: "text", name: "body", max: 100000 },
      { type: "bool", name: "published" },
      { type: "relation", name: "author", collectionId: "_pb_users_auth_", maxSelect: 1, cascadeDelete: true, required: true },
      { type: "autodate", name: "created", onCreate: true },
      { type: "autodate", name: "updated", onCreate: true, onUpdate: true },
    ],
    indexes: ["CREATE INDEX idx_posts_published ON posts (published, created)"],
  }))
}, (app) => {
  app.delete(app.findCollectionByNameOrId("posts"))
})
