/** Limits of the whole system, in one place; each is tested on both sides. */
export const LIMITS = {
  /** One WebSocket message. 25 million parameters take 100 MB. */
  frameBytesMax: 2 ** 30,
  headerBytesMax: 2 ** 20,
  /** What a run keeps of its data: 224 · 224 · 3 features, each with a mean and a deviation, take 3.2 MB. */
  factsBytesMax: 2 ** 26,
  /** All facts that are on their way to a server, together. */
  factsAtOnceBytesMax: 2 ** 26,
  bodyBytesMax: 2 ** 20,
  /** Pixels of a side, for steps that change images. */
  imageSideMax: 16_384,
  /** Neighbours in a file of data that are read at once, and what a source keeps of what it has decoded. */
  readBytesMax: 2 ** 23,
  sourceCacheBytes: 2 ** 26,
  /** A column of a row group of a Parquet file, decoded. */
  columnChunkBytesMax: 2 ** 29,
  /** Numbers of an example that are whitened together: each is a row and a column of a matrix. */
  whitenedInputsMax: 1_024,
  /** Shards of tar archives that are one data set, examples of one shard, and bytes of a member that is read. */
  tarShardsMax: 10_000,
  tarShardExamplesMax: 2 ** 20,
  tarMemberBytesMax: 2 ** 26,
  /** Weights of a pretrained model, as they lie in their files, and its model.json. */
  pretrainedBytesMax: 2 ** 30,
  topologyBytesMax: 2 ** 26,
  /** Rows of tables in a model for TensorFlow.js. */
  exportedTableBytesMax: 2 ** 31,
  /** The layers of a pretrained model that a run keeps, compressed, as base64. */
  keptArchitectureBytesMax: 2 ** 20,
  /** Entries of a vocabulary: a run keeps them all. */
  vocabularySizeMax: 2 ** 20,
  /** Numbers that `downpour look` has in memory of a model's answers, and of the vectors of its words. */
  lookedNumbersMax: 2 ** 26,
  /** Tokens of one example. */
  textLengthMax: 2 ** 20,
  /** Tokens that `downpour sample` writes, and the highest temperature. */
  sampledTokensMax: 100_000,
  temperatureMax: 100,
  /** Fields of an example, masks included. */
  fieldsMax: 64,
  /** Seconds that one read of a source of examples may take, and the most that a source may ask for. */
  readSecondsDefault: 60,
  readSecondsMax: 3_600,
  /** Results of reading sources once that a machine keeps. */
  keptSourcesMax: 256,
  tensorCountMax: 10_000,
  /** Tensors that an experiment carries from minibatch to minibatch, all together: each push and each pull brings them. */
  carriedBytesMax: 2 ** 26,
  rankMax: 8,
  nameLengthMax: 200,
  runCountMax: 10_000,
  /** Labels of a run: characters of its name, of one tag and of its note; the number of its tags. */
  labelNameLengthMax: 100,
  labelTagLengthMax: 40,
  labelTagCountMax: 20,
  labelNoteLengthMax: 4_000,
  workerCountMax: 1_000,
  shardCountMax: 64,
  /** The standbys of one server. */
  standbyCountMax: 1,
  /** Runs that a worker without one is told of, for lack of their experiments: the newest. */
  missingToldMax: 20,
  /** Tensors and layers of one sample, each. */
  observedMax: 64,
  histogramBinsMax: 64,
  /** The metrics of an evaluation: an experiment's own, and two that are measured on the training part. */
  metricCountMax: 66,
  /** The most that workers may measure: a float32 ends at 3.4e38, and sums of so large numbers stay finite. */
  measuredMax: 1e100,
  /** Examples with predictions that an evaluation may come with, and the runs whose latest ones a server keeps. */
  shownExamplesMax: 12,
  shownExamplesDefault: 8,
  shownRunsMax: 100,
  /** Between two reports of a worker about its machine; of what comes sooner the server takes nothing. */
  machineMs: 10_000,
  machineMsMin: 5_000,
  /** A gradient, or samples, of 30 years. */
  durationMsMax: 1e12,
  /** Velocities of workers that a run keeps for look-ahead, and what they take on each shard; then several share one. */
  velocityCountMax: 64,
  velocityBytesMax: 2 ** 30,
  /** Gradients of the virtual workers of `downpour simulate`, all together. */
  simulatedBytesMax: 2 ** 32,
  /** Pushes of one step that are kept one by one, for aggregates other than the mean, and what they take on each shard. */
  collectedCountMax: 64,
  collectedBytesMax: 2 ** 30,
  /** Workers whose parameters are kept as they were sent, for `gap` and `compensated`, and what they take on each shard. */
  sentCountMax: 64,
  sentBytesMax: 2 ** 30,
  /** Groups of parameters, and the patterns of one. */
  groupCountMax: 32,
  groupPatternsMax: 64,
  /** Tables of rows of a run, numbers in a row, and ids of a table: an Int32Array holds them. */
  tableCountMax: 64,
  rowWidthMax: 4_096,
  rowIdsMax: 2 ** 31,
  /** Ids of a field of float32 are below this: from here on it does not keep all whole numbers apart. */
  floatIdsMax: 2 ** 24,
  /** Rows of all tables in one message, and what they take. */
  rowsPerMessageMax: 2 ** 18,
  rowBytesMax: 2 ** 28,
  /** Rows of tables that are never changed, which a worker keeps and does not ask for again: bytes of all its tables. */
  frozenRowBytesMax: 2 ** 27,
  /** Ids of a growing table that wait to be admitted: the oldest is forgotten for a new one. */
  rowsWaitingMax: 2 ** 16,
  /** One word with its vector in a file of word vectors: 4,096 numbers of 30 characters each take half. */
  wordVectorBytesMax: 2 ** 18,
  /** What a JSON file of word vectors has before its vectors, such as a list of all words. */
  wordVectorHeadBytesMax: 2 ** 26,
  /** Minibatches that a worker trains on between two exchanges. */
  localStepsMax: 10_000,
  /** Parts of the parameters that are exchanged one at a time. */
  fragmentsMax: 256,
  /** Minibatch leases one worker may hold. */
  leasesPerWorkerMax: 64,
  /** Bytes waiting to be sent to one worker before it is disconnected as a slow reader. */
  bufferedBytesMax: 2 ** 31 + 2 ** 26,
  /** Beside two answers with parameters: beyond, a connection is not read until all of it has left. */
  unreadBytesMax: 2 ** 20,
  /** The least speed of a payload, on average over the time that a worker may be silent: 100 MB in 26 minutes. */
  payloadBytesPerSecondMin: 2 ** 16,
  /** What connections take beside the memory of runs: a share of what the process may have, within bounds. */
  connectionMemoryShare: 1 / 8,
  connectionBytesMin: 2 ** 28,
  connectionBytesMax: 2 ** 31,
  /** How long a message waits for that memory. */
  memoryWaitMs: 30_000,
  heartbeatMs: 10_000,
  /** No message and no pong for so long: the worker is gone. */
  silenceMs: 30_000,
  /** The same for a worker that knows of another server to go to. */
  standbyBeatMs: 1_000,
  standbySilenceMs: 4_000,
  /** How often a shard and its server say that they live; after so long a shard that says nothing is lost. */
  shardBeatMs: 1_000,
  shardSilenceMs: 10_000,
  /** That wait to be sent to one shard: beyond, no worker's message is read until less does. */
  shardUnsentBytesMax: 2 ** 26,
  /** The time in which a worker must have said to a shard who it is, and the server that it knows it. */
  attachMs: 10_000,
  /** All headers of a request to the server together. */
  requestHeaderBytesMax: 16 * 1024,
  /** The time in which the headers of a request, and all of it, must have come. */
  requestHeaderMs: 10_000,
  requestMs: 60_000,
  /** The time in which a client must have agreed on encryption. */
  tlsHandshakeMs: 10_000,
  /** Between two requests on one connection: an idle one takes a socket from those who work. */
  keepAliveMs: 10_000,
  /** Sockets of REST clients and workers together, of each port; who has shown no token has a quarter of them. */
  socketCountMax: 4_096,
  /** Requests of one token, or of one address without tokens, that are not answered yet. */
  requestsUnderWayMax: 1_000,
  /** Requests and handshakes of one token in a second, without tokens of one address; `--requests-max`. */
  requestsPerSecondMax: 1_000,
  /** The requests of one address whose token was missing or wrong. */
  refusalsPerSecondMax: 20,
  /** Workers connected with one token; `--connections-max`. */
  connectionsPerTokenMax: 1_000,
  /**
   * Handshakes of workers with one token in a second, without tokens of one address; `--handshakes-max`. After a pause there
   * may be as many at once as connections. A connection that ended for a fault of its own counts as several.
   */
  handshakesPerSecondMax: 20,
  handshakesPerFault: 10,
  /** A handshake that came too soon is answered after this time, so that who comes back at once does not come oftener … */
  refusalHeldMs: 1_000,
  /** … for as many sockets at a time; others are refused at once. */
  refusalsHeldMax: 256,
  tokenCountMax: 1_000,
  /**
   * How much of the thread that all pushes wait for one token may take with messages that the server has not asked for, and
   * with requests: as a share of all time, and at once after a pause. Where there are no tokens it is one address.
   */
  messageTimeShareMax: 0.1,
  messageTimeBurstMs: 1_000,
  requestTimeShareMax: 0.1,
  requestTimeBurstMs: 1_000,
  /** A request waits for its turn at most so long. */
  requestWaitMs: 1_000,
  /** Holders of tokens, or addresses, whose requests are counted at the same time. */
  holderCountMax: 10_000,
  /** Open dashboards, and what each is sent in a second on average. */
  feedCountMax: 64,
  feedBytesPerSecondMax: 2 ** 16,
  /** That `/metrics` tells of one by one: those at work, then the newest. */
  scrapedRunsMax: 200,
  /** The fewest points of a curve that is asked for. */
  curvePointsMin: 10,
  curvePointsMax: 2_000,
  /** Studies that a server keeps, and one of them as JSON. */
  studyCountMax: 1_000,
  studyBytesMax: 2 ** 22,
  /** How long one login lasts. */
  loginSeconds: 12 * 3600,
  /** How soon a page must show its ticket, and how many may wait for that. */
  ticketSeconds: 30,
  ticketCountMax: 1_000,
  /** The data of one experiment for pages. */
  joinDataBytesMax: 2 ** 30,
  /** One experiment that is sent to workers as a bundle; the bundles that a server keeps, and all of them together. */
  bundleBytesMax: 2 ** 24,
  bundleCountMax: 1_000,
  bundlesBytesMax: 2 ** 30,
  /** All bundles that the workers of a machine keep, together. */
  bundleCacheBytesMax: 2 ** 28,
  /** The time in which a worker must have fetched a bundle. */
  bundleFetchMs: 300_000,
  /** All records that wait for a Redis that is away, together. */
  journalBytesMax: 2 ** 26,
  /** Checkpoints that one of changed rows continues. */
  checkpointLinksMax: 16,
  /** Who asks for the checkpoints of a run that has just ended waits so long for those that its end writes. */
  endWrittenMs: 5_000,
  /** Downloads of such checkpoints at once: the keys of all their rows are in memory. */
  joinedDownloadsMax: 8,
  /** Rows of a run that take fewer bytes are written with each checkpoint. */
  checkpointChangesBytesMin: 2 ** 20,
  /** A record in Redis or in the state folder, and the list of all checkpoints of a run. */
  recordBytesMax: 2 ** 22,
  registryBytesMax: 2 ** 26,
  /** How long a server that is not heard of may keep its state: `--lease-seconds`. */
  leaseMsMax: 3_600_000,
  /** Lives of a server that a state folder counts. */
  livesMax: 2 ** 31,
  /** Lines of one kind that a log has in a window of time, before they are counted instead. */
  logRepeatsMax: 10,
  logWindowMs: 60_000,
  /** Kinds of lines in a window, and lines of all kinds together; errors have as many for themselves. */
  logKindsMax: 1_000,
  logLinesMax: 2_000,
  logLineCharactersMax: 8_192,
  /** Lines of the log that a server keeps of each run, the length of one, and the length of all of them together. */
  runLogLinesMax: 200,
  runLogCharactersMax: 1_000,
  runLogsCharactersMax: 2 ** 24,
} as const;
