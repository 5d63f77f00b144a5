migrate((app) => {
  const signedIn = "@request.auth.id != ''"
  app.save(new Collection({
    type: "base",
    name: "entries",
    listRule: signedIn,
    viewRule: signedIn,
    createRule: signedIn,
    updateRule: null,
    deleteRule: signedIn,
    fields: [
      { type: "text", name: "message", required: true, max: 500, presentable: true },
      { type: "text", name: "slug", max: 100 },
      { type: "autodate", name: "created", onCreate: true },
    ],
  }))
}, (app) => {
  app.delete(app.findCollectionByNameOrId("entries"))
})
