// Accounts are pocketfleet's: rows of `users` are members, read by themselves and changed by nobody here.
migrate((app) => {
  const users = app.findCollectionByNameOrId("users")
  users.listRule = "id = @request.auth.id"
  users.viewRule = "id = @request.auth.id"
  users.createRule = null
  users.updateRule = null
  users.deleteRule = null
  users.passwordAuth.enabled = false
  users.authAlert.enabled = false
  app.save(users)
}, (app) => {
  const users = app.findCollectionByNameOrId("users")
  users.createRule = ""
  users.updateRule = "id = @request.auth.id"
  users.deleteRule = "id = @request.auth.id"
  users.passwordAuth.enabled = true
  app.save(users)
})
