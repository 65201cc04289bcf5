import { Body, Controller, Delete, Get, Param, Post, Put } from '@nestjs/common';
import { ChatSessionsService } from './chat-sessions.service';
import { CreateChatStateSessionDto, UpdateChatStateSessionDto } from './chat-state-session.dto';

@Controller('chat-state-sessions')
export class ChatStateSessionsController {
  constructor(private readonly service: ChatSessionsService) {}

  @Post()
  create(@Body() dto: CreateChatStateSessionDto) {
    return this.service.createChatStateSession(dto);
  }

  @Get(':userSessionId')
  get(@Param('userSessionId') userSessionId: string) {
    return this.service.getChatStateSession(userSessionId);
  }

  @Put(':userSessionId')
  update(@Param('userSessionId') userSessionId: string, @Body() dto: UpdateChatStateSessionDto) {
    return this.service.updateChatStateSession(userSessionId, dto);
  }

  @Delete(':userSessionId')
  delete(@Param('userSessionId') userSessionId: string) {
    return this.service.deleteChatStateSession(userSessionId);
  }
}
