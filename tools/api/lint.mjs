// Lints one OpenAPI document: node lint.mjs LINTER-FOLDER CONFIG DOCUMENT
// Exit status 1 for any problem, warnings included. Where the linter lies is an argument, because
// tools/lint-api keeps it in a cache outside of this folder.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [folder, configFile, document] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { createConfig, formatProblems, getTotals, lint } = require('@redocly/openapi-core');

const config = await createConfig(readFileSync(configFile, 'utf8'), { configPath: configFile });
const problems = await lint({ ref: document, config });
const totals = getTotals(problems);
formatProblems(problems, { totals, version: 'lint-api', format: 'stylish', color: false, maxProblems: 200 });
console.log(`lint-api: ${totals.errors} errors, ${totals.warnings} warnings, ${totals.ignored} ignored`);
process.exitCode = totals.errors + totals.warnings > 0 ? 1 : 0;
