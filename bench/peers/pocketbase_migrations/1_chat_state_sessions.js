/// The collection that the bench's PocketBase keeps sessions in; `pocketbase migrate up` applies it.

migrate(
  (app) => {
    // No log of requests, because no other system of the bench writes one.
    const settings = app.settings()
    settings.logs.maxDays = 0
    app.save(settings)

    // Open to everybody, so that no request pays for its authentication.
    const sessions = new Collection({
      type: "base",
      name: "chat_state_sessions",
      listRule: "",
      viewRule: "",
      createRule: "",
      updateRule: "",
      fields: [
        // The session's id is the record's, too: a record is found quickest by its own id.
        {
          name: "id",
          type: "text",
          system: true,
          primaryKey: true,
          required: true,
          min: 1,
          max: 255,
          pattern: "^[a-z0-9-]+$",
          autogeneratePattern: "[a-z0-9]{15}",
        },
        { name: "user_session_id", type: "text", required: true, max: 255 },
        { name: "chat_state", type: "text", max: 4 * 1024 * 1024 },
        { name: "last_activity", type: "autodate", onCreate: true, onUpdate: true },
      ],
      indexes: ["CREATE UNIQUE INDEX chat_state_sessions_user_session_id ON chat_state_sessions (user_session_id)"],
    })
    app.save(sessions)
  },
  (app) => app.delete(app.findCollectionByNameOrId("chat_state_sessions")),
)
