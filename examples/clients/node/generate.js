// Streams a completion from a steering server, steered where --vector says so.
//
// The messages and services in generated/ are made from the server's protos: `npm run build`.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { FinishReason, GenerationService } from "./generated/steering/v1/generation_pb.js";
import { ModelService } from "./generated/steering/v1/model_pb.js";

const { values } = parseArgs({
  options: {
    target: { type: "string", default: "http://127.0.0.1:50051" },
    prompt: { type: "string", default: "2 + 2 =" },
    vector: { type: "string" },
    strength: { type: "string", default: "1" },
    tokens: { type: "string", default: "32" },
    seed: { type: "string", default: "0" },
    ca: { type: "string" },
    "token-file": { type: "string" },
  },
});

// A bearer token belongs to every call. Never send one over http:// to another machine.
const token = values["token-file"] && readFileSync(values["token-file"], "utf8").trim();
const authorize = (next) => (request) => {
  if (token) request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};

const transport = createGrpcTransport({
  baseUrl: values.target,
  interceptors: [authorize],
  nodeOptions: values.ca ? { ca: readFileSync(values.ca) } : {},
});

try {
  const { model } = await createClient(ModelService, transport).getModel({});
  console.error(`${model.name}: ${model.layerCount} layers`);

  const spec = {
    prompt: { case: "text", value: values.prompt },
    sampling: { maxTokenCount: Number(values.tokens), seed: BigInt(values.seed) },
    // A rule names a vector; where and when it acts is the vector's own matter unless the rule says otherwise.
    steering: values.vector
      ? { rules: [{ vector: values.vector, strength: Number(values.strength) }] }
      : undefined,
  };
  for await (const { event } of createClient(GenerationService, transport).streamGenerate({ spec })) {
    if (event.case === "delta") process.stdout.write(event.value.text);
    if (event.case === "result") {
      const { usage, finishReason, appliedSteering } = event.value;
      process.stdout.write("\n");
      const vectors = (appliedSteering?.rules ?? []).map((rule) => rule.vector);
      console.error(
        `${usage.generatedTokenCount} tokens, ended by ${FinishReason[finishReason]}, ` +
          `${usage.steeredRowCount} rows steered by ${vectors.join(", ") || "nothing"}`,
      );
    }
  }
} catch (error) {
  const failure = ConnectError.from(error);
  console.error(`${Code[failure.code]}: ${failure.rawMessage}`);
  process.exitCode = 1;
}
