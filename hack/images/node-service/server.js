// Says `ready` once its libraries are loaded and its port is open, then serves.
const express = require("express");
const lodash = require("lodash");
const { formatISO } = require("date-fns");
const typescript = require("typescript");

const app = express();
app.get("/", (request, response) => {
  response.json({ day: formatISO(new Date(0)), sum: lodash.sum([1, 2]), typescript: typescript.version });
});
const server = app.listen(0, "127.0.0.1", () => console.log(`ready on port ${server.address().port}`));
