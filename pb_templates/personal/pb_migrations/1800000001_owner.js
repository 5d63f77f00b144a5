// The owner's row has the id of the account, so that @request.auth.id means the same in every instance. Accounts are
// managed in the global instance: here nobody signs in by password, and nobody signs up.
migrate((app) => {
  const users = app.findCollectionByNameOrId("users")
  users.listRule = "id = @request.auth.id"
  users.viewRule = "id = @request.auth.id"
  users.createRule = null
  users.updateRule = null
  users.deleteRule = null
  users.passwordAuth.enabled = false
  users.authAlert.enabled = false
  users.otp.enabled = false
  users.mfa.enabled = false
  app.save(users)
}, (app) => {
  const users = app.findCollectionByNameOrId("users")
  users.createRule = ""
  users.updateRule = "id = @request.auth.id"
  users.deleteRule = "id = @request.auth.id"
  users.passwordAuth.enabled = true
  users.authAlert.enabled = true
  app.save(users)
})
