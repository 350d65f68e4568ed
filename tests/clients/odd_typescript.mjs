// The official TypeScript client at /mcp beside odd servers: odd_typescript.mjs URL NODE_MODULES.
// Lists everything and calls every tool, prompt and resource that is listed.
const [url, modules] = process.argv.slice(2);
const sdk = `${modules}/@modelcontextprotocol/sdk/dist/esm`;
const { Client } = await import(`${sdk}/client/index.js`);
const { StreamableHTTPClientTransport } = await import(`${sdk}/client/streamableHttp.js`);

const client = new Client({ name: "odd", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const { tools } = await client.listTools();
const { prompts } = await client.listPrompts();
const { resources } = await client.listResources();
const { resourceTemplates } = await client.listResourceTemplates();
console.log(`  ${tools.length} tools, ${prompts.length} prompts, ${resources.length} resources, ${resourceTemplates.length} templates`);
if (!tools.some((tool) => tool.name === "good_plain")) throw new Error("the good server's tools are missing");
let called = 0;
// What a server answers is its own; what matters is that the call arrives and its answer is read.
const missed = [];
const attempt = async (what, ask) => {
  try {
    await ask();
    called += 1;
  } catch (error) {
    missed.push(`${what}: ${error.message}`);
  }
};
for (const tool of tools) {
  // Tools of other collections write files, wait or want arguments.
  if (/^(quirk|good_ask|good_hello|hello_ask)/.test(tool.name)) continue;
  await attempt(tool.name, () => client.callTool({ name: tool.name, arguments: {} }));
}
for (const prompt of prompts) {
  if (/^(odd)_/.test(prompt.name)) await attempt(prompt.name, () => client.getPrompt({ name: prompt.name }));
}
for (const resource of resources) {
  if (/^x:..(good|nulls|noname)/.test(resource.uri)) await attempt(resource.uri, () => client.readResource({ uri: resource.uri }));
}
console.log(`  called ${called}`);
for (const miss of missed) console.log(`  MISSED ${miss}`);
await client.close();
process.exit(missed.length > 0 ? 1 : 0);
