import { IsDateString, IsNotEmpty, IsOptional, IsString, MaxLength } from 'class-validator';

export class CreateChatStateSessionDto {
  @IsString()
  @IsNotEmpty()
  @MaxLength(255)
  user_session_id: string;

  @IsString()
  @IsNotEmpty()
  chat_state: string;

  @IsOptional()
  @IsDateString()
  last_activity?: string;
}

export class UpdateChatStateSessionDto {
  @IsOptional()
  @IsString()
  chat_state?: string;

  @IsOptional()
  @IsDateString()
  last_activity?: string;
}
