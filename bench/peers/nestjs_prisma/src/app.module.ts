import { Module } from '@nestjs/common';
import { ChatSessionsService } from './chat-sessions.service';
import { ChatStateSessionsController } from './chat-state-sessions.controller';
import { PrismaService } from './prisma.service';

@Module({
  controllers: [ChatStateSessionsController],
  providers: [ChatSessionsService, PrismaService],
})
export class AppModule {}
