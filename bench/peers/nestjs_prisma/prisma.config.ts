import { defineConfig } from 'prisma/config';

// `prisma generate` needs no engine, but fetches the one for migrations unless told that it is there: any file will do.
process.env.PRISMA_SCHEMA_ENGINE_BINARY ??= process.execPath;
// No look for a newer version either.
process.env.CHECKPOINT_DISABLE ??= '1';

export default defineConfig({ schema: 'prisma/schema.prisma' });
